"""Reads one IDX file, the format of MNIST, gzipped or not, and trusts nothing in it.

Which files belong together, and what their numbers mean, is the business of mnist.py.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from .files import open_regular

# The third byte of the magic number; the numbers are big-endian.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# What NumPy 1 can shape; the fourth byte of the magic number could say 255.
MAX_DIMENSIONS = 32

# Deflate spends at least two bits on a match, which copies at most 258 bytes: 258 * 8 / 2. A header
# that promises more than this many bytes per compressed byte lies, and is refused before any
# memory is taken.
MAX_INFLATION = 1032

GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def _plain_bytes(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int, bool]]:
    """The stream of IDX bytes, the most bytes it can give, and whether it gives exactly these."""
    with open_regular(path) as (file, size):
        # By its magic, not its name: both browsers and `gunzip < a > b.gz` leave wrong names.
        is_gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not is_gzip:
            yield file, size, True
            return
        try:
            with gzip.GzipFile(fileobj=file) as inflated:
                yield cast(BinaryIO, inflated), size * MAX_INFLATION, False
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{os.fspath(path)}: damaged gzip file: {error}") from None


def _read_header(path: str | os.PathLike[str], stream: BinaryIO) -> tuple[str, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise ValueError(f"{os.fspath(path)}: not an IDX file: it starts with {magic!r}")
    n_dimensions = magic[3]
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise ValueError(
            f"{os.fspath(path)}: expected 1 to {MAX_DIMENSIONS} dimensions, got {n_dimensions}"
        )
    sizes = stream.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise ValueError(f"{os.fspath(path)}: truncated inside the header")
    return DTYPES[magic[2]], struct.unpack(f">{n_dimensions}I", sizes)


def read_idx_header(path: str | os.PathLike[str]) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and the shape that the header promises; nothing else is read."""
    with _plain_bytes(path) as (stream, _, _):
        dtype, shape = _read_header(path, stream)
    return np.dtype(dtype).newbyteorder("="), shape


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """
    Read an IDX file.

    No more memory is taken than the header promises, and only after the promise was compared
    with the size of the file.

    Parameters
    ----------
    path : str or path
        The file, plain or gzipped, whatever its name.

    Returns
    -------
    array
        With the header's shape and dtype, in the machine's byte order. It may be read-only.

    Raises
    ------
    ValueError
        If the file is not IDX, is damaged, or is shorter or longer than its header says.
    OSError
        If it cannot be read.
    """
    with _plain_bytes(path) as (stream, most, exact):
        dtype, shape = _read_header(path, stream)
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        available = most - 4 - 4 * len(shape)
        # One byte more than promised: it shows trailing bytes, and brings gzip to its checksum.
        data = stream.read(n_bytes + 1) if n_bytes <= available else b""
    if len(data) == n_bytes:
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.replace(">", "="), copy=False)
    if len(data) > n_bytes:
        what = f"{available - n_bytes} trailing bytes" if exact else "trailing bytes"
    elif exact:
        what = f"truncated: only {available} follow"
    elif n_bytes > available:
        what = f"impossible: gzip cannot hold them in {most // MAX_INFLATION} bytes"
    else:
        what = f"truncated: only {len(data)} follow"
    raise ValueError(
        f"{os.fspath(path)}: the header promises {n_bytes} bytes, shape {shape}; {what}"
    )
