"""Download one file from one mirror, which is a server or a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from bestepoch.base.config.data_sets import IdxDataConfig
from bestepoch.base.config.schema import FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.idx import MAX_BYTES
from bestepoch.base.paths import project_root

if TYPE_CHECKING:
    import requests


class MirrorUnavailable(Exception):
    """A mirror did not deliver the file: no connection, error, too slow, too large, truncated or not in the folder."""


class ChecksumMismatch(Exception):
    """A mirror delivered a complete file with the wrong checksum."""


def list_mirrors(data: IdxDataConfig) -> list[str]:
    """Return the mirrors in the order in which to try them: ``BESTEPOCH_MIRROR`` first if it is set."""
    own = os.environ.get("BESTEPOCH_MIRROR", "").strip()
    return [own, *data.mirrors] if own else list(data.mirrors)


def find_local_files(data: IdxDataConfig) -> dict[str, Path]:
    """Return the file of each role that `fetch` would take from a folder of this machine now.

    A role is left out if a server comes before the first folder that has its file: a server is not asked here.
    """
    found = {}
    for role, name in data.files.model_dump().items():
        for mirror in list_mirrors(data):
            if (folder := _local_folder(mirror)) is None:
                break
            if (folder / name).is_file():
                found[role] = folder / name
                break
    return found


def download_file(mirror: str, name: str, checksum: str | None, config: FetchConfig, folder: Path) -> None:
    """Download the file ``name`` from a mirror, which is a URL (http, https, file) or a path, into ``folder``.

    ``checksum`` is the file's MD5 in hexadecimal, or None to accept any content.

    Raises:
        MirrorUnavailable: the mirror did not deliver the file.
        ChecksumMismatch: the file has the wrong checksum.
        UsageError: the file cannot be written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    mirror_dir = _local_folder(mirror)
    registry = pooch.create(
        path=folder,
        base_url=mirror.rstrip("/") + "/" if mirror_dir is None else f"file://{mirror_dir}/",
        registry={name: f"md5:{checksum}" if checksum else None},
        retry_if_failed=config.retries if mirror_dir is None else 0,
        allow_updates=True,
    )
    try:
        download = _make_http_downloader(config) if mirror_dir is None else _make_copier(mirror_dir / name)
        registry.fetch(name, downloader=download)
    except MirrorUnavailable:
        raise
    except ValueError as error:
        if "hash" not in str(error):
            raise MirrorUnavailable(str(error)) from None
        raise ChecksumMismatch(f"{name} has the wrong checksum: expected md5 {checksum}") from None
    except requests.RequestException as error:
        raise MirrorUnavailable(_describe_failure(error)) from None
    except OSError as error:  # e.g. a full disk, where neither another mirror nor the sample helps
        raise UsageError(f"{name} from {mirror} cannot be put down: {error}") from None


def _local_folder(mirror: str) -> Path | None:
    """Return the folder of a local mirror, or None for a server."""
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        return None
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(mirror).expanduser()
    return folder if folder.is_absolute() else project_root() / folder


def _make_copier(path: Path) -> Callable[..., None]:
    def copy(url: str, output_file: str, _pooch: object) -> None:
        try:
            if path.exists() and not path.is_file():  # reading a pipe or a device may never end
                raise MirrorUnavailable("not a file")
            _require_size(path.stat().st_size)
            content = path.read_bytes()
        except OSError as error:
            raise MirrorUnavailable("no such file" if not path.exists() else str(error)) from None
        Path(output_file).write_bytes(content)

    return copy


def _require_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise MirrorUnavailable(f"too large: {num_bytes:,} bytes and more; at most {MAX_BYTES:,} are taken")


def _make_http_downloader(config: FetchConfig) -> Callable[..., None]:
    """Return a downloader for pooch that, unlike pooch's own, gives up on a server slower than ``fetch.min_speed``."""

    def download(url: str, output_file: str, _pooch: object) -> None:
        import requests
        import urllib3

        from bestepoch.cli.console import download_progress

        with requests.get(url, stream=True, timeout=config.timeout) as response, Path(output_file).open("wb") as file:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            _require_size(total)
            start, num_bytes = time.monotonic(), 0
            with download_progress(url.rsplit("/", 1)[-1], total) as advance:
                # read1 returns as soon as any data arrives, so that a slow server cannot delay the check of its speed.
                try:
                    while chunk := response.raw.read1(1 << 16):
                        file.write(chunk)
                        advance(len(chunk))
                        num_bytes += len(chunk)
                        _require_size(num_bytes)  # a server need not say how much comes
                        seconds = time.monotonic() - start
                        if seconds > config.timeout and (speed := num_bytes / 1000 / seconds) < config.min_speed:
                            raise MirrorUnavailable(f"too slow: {speed:.1f} kB/s after {seconds:.0f} s")
                except urllib3.exceptions.HTTPError as error:  # requests translates only errors of its own reads
                    raise requests.ConnectionError(str(error)) from None
            if total and num_bytes != total:
                raise MirrorUnavailable(f"cut off after {num_bytes:,} of {total:,} bytes")

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
        for pattern, reason in (
            ("NameResolution", "the host name is not known here"),
            ("Failed to resolve", "the host name is not known here"),
            ("refused", "the connection was refused"),
            ("IncompleteRead", "cut off before the end"),
            ("timed out", "no answer in time"),
        ):
            if pattern in text:
                return reason
    return str(error)
