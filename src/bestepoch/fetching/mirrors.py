"""Download one file from one mirror, a server or a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from bestepoch.base.config.groups import IdxDataConfig
from bestepoch.base.config.schema import FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.paths import project_root

if TYPE_CHECKING:
    import requests


class MirrorUnavailable(Exception):
    """No file came: no connection, an error status, too slow, cut off, not in the folder."""


class ChecksumMismatch(Exception):
    """A file came whole and is not the one that was published."""


def list_mirrors(data: IdxDataConfig) -> list[str]:
    """Where to ask, in order: ``BESTEPOCH_MIRROR`` first where it is set."""
    own = os.environ.get("BESTEPOCH_MIRROR", "").strip()
    return [own, *data.mirrors] if own else list(data.mirrors)


def download_file(mirror: str, name: str, checksum: str | None, how: FetchConfig, beside: Path) -> None:
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    local = _local_folder(mirror)
    source = pooch.create(
        path=beside,
        base_url=mirror.rstrip("/") + "/" if local is None else f"file://{local}/",
        registry={name: f"md5:{checksum}" if checksum else None},
        retry_if_failed=how.retries if local is None else 0,
        allow_updates=True,
    )
    try:
        source.fetch(name, downloader=_http_downloader(how) if local is None else _copier(local / name))
    except MirrorUnavailable:
        raise
    except ValueError as error:
        if "hash" not in str(error):
            raise MirrorUnavailable(str(error)) from None
        raise ChecksumMismatch(f"{name} has the wrong checksum: expected md5 {checksum}") from None
    except requests.RequestException as error:
        raise MirrorUnavailable(_describe_failure(error)) from None
    except OSError as error:  # a full disk here, say, is nothing that another mirror or the sample could mend
        raise UsageError(f"{name} from {mirror} cannot be put down: {error}") from None


def _local_folder(mirror: str) -> Path | None:
    """The folder that a mirror is, or None for a server."""
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        return None
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(mirror).expanduser()
    return folder if folder.is_absolute() else project_root() / folder


def _copier(path: Path) -> Callable[..., None]:
    def copy(url: str, output_file: str, _pooch: object) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise MirrorUnavailable("no such file" if not path.exists() else str(error)) from None
        Path(output_file).write_bytes(content)

    return copy


def _http_downloader(how: FetchConfig) -> Callable[..., None]:
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
                            raise MirrorUnavailable(f"too slow: {got / 1000 / seconds:.1f} kB/s after {seconds:.0f} s")
                except urllib3.exceptions.HTTPError as error:  # requests translates these only in its own reading
                    raise requests.ConnectionError(str(error)) from None
            if total and got != total:
                raise MirrorUnavailable(f"cut off after {got:,} of {total:,} bytes")

    return download


def _describe_failure(error: requests.RequestException) -> str:
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
