"""Data sets in MNIST's four files, made up for the tests, good and hostile."""

import gzip
import struct

import numpy as np

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array, shape=None):
    """The bytes of an IDX file; `shape` is what its header claims."""
    array = np.asarray(array)
    shape = array.shape if shape is None else shape
    header = struct.pack(f">4B{len(shape)}I", 0, 0, CODES[array.dtype.str[1:]], len(shape), *shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def make_set(rng, n_train=200, n_test=50, shape=(7, 5)):
    """Images that can be learnt: a bright row per class, in noise. Returns the four arrays."""
    arrays = []
    for n in (n_train, n_test):
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        images = rng.integers(0, 128, (n, *shape), dtype=np.uint8)
        flat = images.reshape(n, -1)
        flat[np.arange(n), 3 * labels] = 255
        flat[np.arange(n), 3 * labels + 1] = 255
        arrays += [images, labels]
    return arrays


def write_set(folder, arrays, suffix="", pack=bytes):
    folder.mkdir(exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        (folder / f"{name}{suffix}").write_bytes(pack(idx(array)))
    return folder


def gzipped(data):
    return gzip.compress(data, mtime=0)
