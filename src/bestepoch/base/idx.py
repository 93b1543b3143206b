"""Read and write IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


def read_idx(path: Path, ndim: int) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Returns:
        images ``(N, H, W)`` for ``ndim`` 3, labels ``(N,)`` for ``ndim`` 1; uint8.

    Raises:
        UsageError: the file is not an IDX file of bytes with ``ndim`` dimensions, or has the wrong length.

    Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path.name} is not a whole gzip file: {error}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise UsageError(f"{path.name} is not an IDX file: it begins with {raw[:4].hex(' ') or 'nothing'}")
    if raw[2] != 0x08 or raw[3] != ndim:
        raise UsageError(
            f"{path.name} holds type 0x{raw[2]:02x} in {raw[3]} dimensions; needed: unsigned bytes (0x08) in {ndim}"
        )
    header_size = 4 + 4 * ndim
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, header_size, 4))
    if len(raw) < header_size:
        raise UsageError(f"{path.name} ends inside its head, after {len(raw)} of {header_size} bytes")
    if len(raw) != header_size + math.prod(shape):
        raise UsageError(f"{path.name} says {shape} but holds {len(raw) - header_size:,} bytes of data")
    import numpy as np

    return np.frombuffer(raw, np.uint8, offset=header_size).reshape(shape)


def encode_idx(array: Bytes) -> bytes:
    """Encode ``array`` as a gzipped IDX file. Equal arrays give equal bytes."""
    header = bytes([0, 0, 0x08, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)
