"""The IDX reader: right values from every good file, one line that names every bad one."""

import gzip
import os
import struct
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from mnist_files import CODES, gzipped, idx

from fastce.mlp.idx import read_idx, read_idx_header

GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.fixture
def refused(tmp_path):
    """The bytes are refused by a ValueError of one line that starts with the file's path."""

    def check(data, message):
        path = tmp_path / "bad"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as error:
            read_idx(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)

    return check


@pytest.mark.parametrize("pack", [bytes, gzipped])
@pytest.mark.parametrize("code", CODES)
def test_every_dtype_comes_back(tmp_path, code, pack):
    array = np.array([[0, 1, 2], [100, 7, 8]], code)
    if array.dtype.kind != "u":
        array[1, 1] = -7
    path = tmp_path / "file"
    path.write_bytes(pack(idx(array)))
    back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)
    assert read_idx_header(path) == (array.dtype, array.shape)


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0, 3), (1,) * 32])
def test_odd_shapes_come_back(tmp_path, shape):
    path = tmp_path / "file"
    path.write_bytes(idx(np.ones(shape, np.uint8)))
    assert read_idx(path).shape == shape


def test_gzip_is_told_by_its_magic_not_its_name(tmp_path):
    (tmp_path / "plain.gz").write_bytes(GOOD)
    (tmp_path / "packed").write_bytes(gzipped(GOOD))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), read_idx(tmp_path / "packed"))


def test_gzip_of_several_members(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(gzipped(GOOD[:9]) + gzipped(GOOD[9:]))
    assert read_idx(path).sum() == sum(range(24))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"P5\n28 28\n", "not an IDX file"),
        (b"\1" + GOOD[1:], "not an IDX file"),
        (b"\0\1" + GOOD[2:], "not an IDX file"),
        (b"\0\0\x07\x01" + bytes(8), "not an IDX file"),
        (b"\0\0\x08\0", "1 to 32 dimensions, got 0"),
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"\0", "1 to 32 dimensions, got 255"),
        (GOOD[:11], "truncated inside the header"),
        (GOOD[:-1], "promises 24 bytes, shape .2, 3, 4.; truncated: only 23 follow"),
        (GOOD + b"\0", "promises 24 bytes, shape .2, 3, 4.; 1 trailing bytes"),
        (idx(np.zeros(3, np.int32))[:-2], "promises 12 bytes, shape .3,.; truncated"),
    ],
)
def test_bad_files_are_refused(refused, data, message):
    refused(data, message)
    if data:
        refused(gzipped(data), message.replace("1 trailing", "trailing"))


@pytest.mark.parametrize(
    "data",
    [
        gzipped(GOOD)[:-1],  # without the end of its length
        gzipped(GOOD)[:20],
        b"\x1f\x8b",
        gzipped(GOOD) + b"garbage",
        gzipped(GOOD)[:-8] + bytes(8),  # a wrong checksum
        gzipped(GOOD)[:12] + b"\xff\xff\xff" + gzipped(GOOD)[15:],
    ],
)
def test_damaged_gzip_is_refused(refused, data):
    refused(data, "damaged gzip file")


def test_a_header_beyond_the_file_takes_no_memory(refused):
    """2**96 bytes promised: refused before any is asked for."""
    claim = idx(np.zeros(9, np.uint8), shape=(2**32 - 1,) * 3)
    refused(claim, "truncated: only 9 follow")
    refused(gzipped(claim), "gzip cannot hold them")


def test_a_gzip_bomb_is_inflated_only_as_far_as_promised(refused):
    bomb = gzip.compress(idx(np.zeros(100, np.uint8)) + bytes(50_000_000))
    tracemalloc.start()
    refused(bomb, "trailing bytes")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the bomb itself has 50 KB, and gzip reads ahead a little


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: expected a regular file"):
        read_idx(tmp_path / "pipe")


@hypothesis.given(data=st.binary(max_size=64), start=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, start):
    """The second half of the examples gets past the magic number."""
    path = tmp_path_factory.getbasetemp() / "any"
    data = struct.pack(">4B", 0, 0, 8, len(data) % 4) + data if start else data
    path.write_bytes(data)
    try:
        array = read_idx(path)
    except ValueError as error:
        named = str(error).startswith(f"{path}: ")
    else:
        named = idx(array) == data
    assert named
