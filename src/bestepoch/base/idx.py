"""Read and write IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

MAX_BYTES = 2 << 30  # of one file of a data set, as it is served and unpacked; MNIST's largest has 47 MB


def read_idx(path: Path, ndim: int) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Returns:
        images ``(N, H, W)`` for ``ndim`` 3, labels ``(N,)`` for ``ndim`` 1; uint8.

    Raises:
        UsageError: the file is not an IDX file of bytes with ``ndim`` dimensions, has the wrong length, or is larger
            than `MAX_BYTES`. No more of a gzipped file is unpacked than its head announces.

    Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    header_size = 4 + 4 * ndim
    with path.open("rb") as plain:
        gzipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=plain) if gzipped else plain  # type: ignore[assignment]
        try:
            raw = file.read(header_size)
            shape = _read_shape(path, raw, ndim)
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise UsageError(f"{path.name} says {shape}, which is {size:,} bytes; at most {MAX_BYTES:,} are read")
            # one byte more than there should be reaches the end, and with it the checksum of gzip
            data = file.read(size + 1)
            if len(data) > size:
                found = "more" if gzipped else f"{path.stat().st_size - header_size:,}"
                raise UsageError(f"{path.name} says {shape} but holds {found} bytes of data")
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path.name} is not a whole gzip file: {error}") from None
    if len(data) != size:
        raise UsageError(f"{path.name} says {shape} but holds {len(data):,} bytes of data")
    import numpy as np

    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_shape(path: Path, header: bytes, ndim: int) -> tuple[int, ...]:
    if len(header) < 4 or header[:2] != b"\0\0":
        raise UsageError(f"{path.name} is not an IDX file: it begins with {header[:4].hex(' ') or 'nothing'}")
    if header[2] != 0x08 or header[3] != ndim:
        raise UsageError(
            f"{path.name} holds type 0x{header[2]:02x} in {header[3]} dimensions; needed: unsigned bytes (0x08) in "
            f"{ndim}"
        )
    if len(header) < 4 + 4 * ndim:
        raise UsageError(f"{path.name} ends inside its head, after {len(header)} of {4 + 4 * ndim} bytes")
    return tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))


def encode_idx(array: Bytes) -> bytes:
    """Encode ``array`` as a gzipped IDX file. Equal arrays give equal bytes."""
    header = bytes([0, 0, 0x08, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)
