"""IDX files: what is written can be read, and what is no such file is refused with the reason."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from bestepoch.base.errors import UsageError
from bestepoch.base.idx import encode_idx, read_idx

# two images of 2 x 3 pixels and their labels, byte by byte as the format's description has them
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(244, 256)])
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 0])


def test_bytes_of_the_format(tmp_path):
    (tmp_path / "images").write_bytes(gzip.compress(IMAGES))
    (tmp_path / "labels").write_bytes(gzip.compress(LABELS))
    images, labels = read_idx(tmp_path / "images", 3), read_idx(tmp_path / "labels", 1)
    assert images.tolist() == [[[244, 245, 246], [247, 248, 249]], [[250, 251, 252], [253, 254, 255]]]
    assert labels.tolist() == [7, 0]
    assert images.dtype == labels.dtype == np.uint8


def test_written_as_the_format_has_it():
    images = np.arange(244, 256, dtype=np.uint8).reshape(2, 2, 3)
    assert gzip.decompress(encode_idx(images)) == IMAGES
    assert gzip.decompress(encode_idx(np.array([7, 0], np.uint8))) == LABELS


@pytest.mark.parametrize("content", [IMAGES, gzip.compress(IMAGES)], ids=["plain", "gzipped"])
@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images.gz"])
def test_gzip_is_told_by_content_and_not_by_name(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert read_idx(tmp_path / name, 3).tobytes() == bytes(range(244, 256))


@pytest.mark.parametrize(
    "shape", [(5, 28, 28), (3, 12, 20), (2, 1, 1), (1, 300, 257), (0, 4, 4), (300,), (0,)], ids=str
)
def test_round_trip(shape, tmp_path):
    array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    (tmp_path / "file.gz").write_bytes(encode_idx(array))
    read = read_idx(tmp_path / "file.gz", len(shape))
    assert read.shape == shape
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


def test_order_in_memory_does_not_matter(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1)
    assert not array.flags.c_contiguous
    (tmp_path / "file.gz").write_bytes(encode_idx(array))
    assert read_idx(tmp_path / "file.gz", 3).tolist() == array.tolist()


def test_same_array_makes_the_same_bytes(monkeypatch):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    first = encode_idx(array)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert encode_idx(array.copy()) == first
    assert encode_idx(array + np.uint8(1)) != first


ZIPPED = gzip.compress(IMAGES)

BAD = {
    "empty": (b"", "is not an IDX file: it begins with nothing"),
    "three bytes": (IMAGES[:3], "is not an IDX file: it begins with 00 00 08"),
    "text": (b"Not found\n", "is not an IDX file: it begins with 4e 6f 74 20"),
    "text, gzipped": (gzip.compress(b"Not found\n"), "is not an IDX file: it begins with 4e 6f 74 20"),
    "nothing, gzipped": (gzip.compress(b""), "is not an IDX file: it begins with nothing"),
    "gzipped twice": (gzip.compress(ZIPPED), "is not an IDX file: it begins with 1f 8b 08 00"),
    "signed bytes": (IMAGES[:2] + b"\x09" + IMAGES[3:], "holds type 0x09 in 3 dimensions"),
    "floats": (IMAGES[:2] + b"\x0d" + IMAGES[3:], "holds type 0x0d in 3 dimensions"),
    "labels": (LABELS, r"holds type 0x08 in 1 dimensions; needed: unsigned bytes \(0x08\) in 3"),
    "in colour": (IMAGES[:3] + b"\x04" + IMAGES[4:], "holds type 0x08 in 4 dimensions"),
    "head cut": (IMAGES[:10], "ends inside its head, after 10 of 16 bytes"),
    "head alone": (IMAGES[:16], r"says \(2, 2, 3\) but holds 0 bytes of data"),
    "last byte cut": (IMAGES[:-1], r"says \(2, 2, 3\) but holds 11 bytes of data"),
    "last byte cut, gzipped": (gzip.compress(IMAGES[:-1]), r"says \(2, 2, 3\) but holds 11 bytes of data"),
    "a byte too many": (IMAGES + b"\0", r"says \(2, 2, 3\) but holds 13 bytes of data"),
    "another file after it": (IMAGES + IMAGES, r"says \(2, 2, 3\) but holds 40 bytes of data"),
    "absurd size": (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], r"says \(4294967295, 4294967295, 4294967295\)"),
    # 2^31 * 2^31 * 4 is 0 where a product is kept in 64 bits, and no data follows
    "size that overflows": (
        IMAGES[:4] + b"\x80\0\0\0\x80\0\0\0\0\0\0\4",
        r"says \(2147483648, 2147483648, 4\), which is 18,446,744,073,709,551,616 bytes; at most 2,147,483,648 are",
    ),
    "gzip cut": (ZIPPED[:-9], "is not a whole gzip file"),
    "gzip head alone": (ZIPPED[:2], "is not a whole gzip file"),
    "gzip with a wrong checksum": (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "is not a whole gzip file"),
    "gzip with a wrong length": (ZIPPED[:-4] + b"\0\0\0\0", "is not a whole gzip file"),
    "gzip broken inside": (ZIPPED[:10] + b"\xff" * 8 + ZIPPED[18:], "is not a whole gzip file"),
    "gzip and something after it": (ZIPPED + b"something", "is not a whole gzip file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_images_file(kind, tmp_path):
    content, reason = BAD[kind]
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(UsageError, match=f"^images.gz {reason}"):
        read_idx(tmp_path / "images.gz", 3)


@pytest.mark.parametrize("head", ["of two images", "of what follows", "of another format"])
def test_gzip_that_unpacks_to_far_more_than_it_should(head, tmp_path, monkeypatch):
    """64 MB of zeros in 64 kB: no more of it is unpacked than the head announces, and that is bounded."""
    heads = {
        "of two images": IMAGES[:16],
        "of what follows": IMAGES[:4] + b"\0\0\xff\xff" * 3,
        "of another format": b"",
    }
    block = zlib.compressobj(9, wbits=-15)
    with (tmp_path / "images.gz").open("wb") as file:
        file.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
        file.write(block.compress(heads[head]))
        million = bytes(1 << 20)
        for _ in range(64):
            file.write(block.compress(million))
        file.write(block.flush())
    reasons = {
        "of two images": r"says \(2, 2, 3\) but holds more bytes of data",
        "of what follows": r"says \(65535, 65535, 65535\), which is 281,462,092,005,375 bytes; at most 2,147,483,648 ",
        "of another format": "is not an IDX file: it begins with 00 00 00 00|holds type 0x00",
    }
    tracemalloc.start()
    with pytest.raises(UsageError, match=rf"^images\.gz ({reasons[head]})"):
        read_idx(tmp_path / "images.gz", 3)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_images_where_labels_belong(tmp_path):
    (tmp_path / "labels.gz").write_bytes(IMAGES)
    with pytest.raises(UsageError, match=r"^labels.gz holds type 0x08 in 3 dimensions; needed: .* in 1$"):
        read_idx(tmp_path / "labels.gz", 1)
