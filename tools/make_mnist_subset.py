"""Makes fastce/mlp/data/ from the four original MNIST files; nothing random, no times.

    python tools/make_mnist_subset.py DIR

Every sixth training image and every fifth test image. Not the first ones: the first half of the
test set is cleaner and easier than the second (the two were written by different people).
"""

import gzip
import struct
import sys
from pathlib import Path

from fastce.mlp.idx import read_idx
from fastce.mlp.mnist import EMBEDDED

STEPS = {
    "train-images-idx3-ubyte": 6,
    "train-labels-idx1-ubyte": 6,
    "t10k-images-idx3-ubyte": 5,
    "t10k-labels-idx1-ubyte": 5,
}


def main(folder: str) -> None:
    for name, step in STEPS.items():
        array = read_idx(Path(folder) / f"{name}.gz")[::step]
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
        # mtime=0: no time in the file.
        packed = gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0)
        (EMBEDDED / f"{name}.gz").write_bytes(packed)
        print(f"{name}.gz: {array.shape}, {len(packed):,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
