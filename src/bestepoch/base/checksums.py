"""Checksums of the parts of a split and of large files, which are read again only after they have changed."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.base.errors import UsageError
from bestepoch.base.paths import main_checkout

if TYPE_CHECKING:
    from bestepoch.base.idx import Bytes

SMALL = 8 << 20  # bytes; a smaller file is read each time, which takes about 10 ms
SETTLED_NS = 2 * 10**9  # a file that changed a moment ago may change again within the same tick of the clock


def part_checksum(images: Bytes, labels: Bytes) -> str:
    """Return the SHA-256 of a part's images ``(N, H, W)`` and labels ``(N,)``, uint8, in hexadecimal."""
    import numpy as np

    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def checksum_of(path: Path, compute: Callable[[], str]) -> str:
    """Return ``compute()``, or what it returned for ``path`` before if the file has not changed since.

    A file counts as unchanged if its size, inode and both of its times (of content and of status) are the same. The
    times of status cannot be set by a user, so a file that was copied with the times of the old one is noticed.

    Args:
        path: an existing file.
        compute: returns the file's checksum; for one file, always by the same method.
    """
    before = path.stat()
    if before.st_size < SMALL:
        return compute()
    store, key, state = main_checkout() / "data/prepared/.checksums.json", str(path.resolve()), _state(before)
    known = _read(store)
    if known.get(key, {}).get("state") == state:
        return str(known[key]["checksum"])
    checksum = compute()
    changed = max(before.st_mtime_ns, before.st_ctime_ns)
    if time.time_ns() - changed > SETTLED_NS and _state(path.stat()) == state:
        entries = {name: entry for name, entry in _read(store).items() if Path(name).exists()}
        with contextlib.suppress(OSError):  # a checksum that is not remembered is computed again
            files.write_json(store, {**entries, key: {"state": state, "checksum": checksum}})
    return checksum


def _state(stat: Any) -> list[int]:
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(store: Path) -> dict[str, Any]:
    try:
        entries = files.read_json(store, "")
    except (UsageError, OSError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict) and "checksum" in entry}
