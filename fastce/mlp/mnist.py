"""The four files of MNIST, or of any data set in its format, as arrays ready for training.

The file format itself is read by idx.py; download.py fetches the full set.
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np

from .files import as_path
from .idx import read_idx, read_idx_header

N_CLASSES = 10

# A real subset, every sixth training and every fifth test image; data/README.md says more.
EMBEDDED = Path(__file__).parent / "data"

IMAGES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
LABELS = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")


def _find(folder: Path, name: str) -> Path:
    """The file under any of the names that circulate: -idx3- or .idx3-, with or without .gz."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for candidate in (folder / spelling, folder / f"{spelling}.gz"):
            if candidate.exists():
                return candidate
    os.listdir(folder)  # that there is no such folder is the better complaint
    raise FileNotFoundError(errno.ENOENT, "no such file, nor with .gz", str(folder / name))


def _check_headers(images: Path, labels: Path) -> tuple[int, ...]:
    """The shape of the images, after the two headers were found to belong together."""
    label_dtype, label_shape = read_idx_header(labels)
    if label_dtype != np.uint8 or len(label_shape) != 1:
        raise ValueError(
            f"{labels}: expected labels, uint8 of shape (n,), got {label_dtype} of {label_shape}"
        )
    image_dtype, image_shape = read_idx_header(images)
    if image_dtype != np.uint8 or len(image_shape) != 3 or 0 in image_shape:
        raise ValueError(
            f"{images}: expected images, uint8 of shape (n, rows, columns), "
            f"got {image_dtype} of {image_shape}"
        )
    if image_shape[0] != label_shape[0]:
        raise ValueError(
            f"{labels}: expected a label for each of the {image_shape[0]} images of "
            f"{images.name}, got {label_shape[0]}"
        )
    return image_shape


def _read_labels(path: Path) -> np.ndarray:
    labels = read_idx(path)
    if labels.max() >= N_CLASSES:
        first = int(np.argmax(labels >= N_CLASSES))
        raise ValueError(f"{path}: label[{first}] is {labels[first]}, outside [0, {N_CLASSES})")
    return labels


def _read_images(path: Path) -> np.ndarray:
    images = read_idx(path)
    # A true division: 255 gives 1 exactly.
    X = np.empty((len(images), math.prod(images.shape[1:])), np.float32)
    np.divide(images.reshape(X.shape), np.float32(255), out=X)
    return X


def _folder(path: str | os.PathLike[str] | None) -> Path:
    return EMBEDDED if path is None else as_path(path, "a folder")


def load_mnist(
    path: str | os.PathLike[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Load MNIST: the embedded subset, or the four IDX files of a folder.

    Parameters
    ----------
    path : str or path, optional
        A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two
        ``t10k-`` files, gzipped or not; ``.idx3-`` for ``-idx3-`` is understood. Fashion-MNIST
        and KMNIST use the same names and work too. Without it, 10,000 training and 2,000 test
        images of MNIST that come with the package.

    Returns
    -------
    X : float32 array of shape (n, rows * columns)
        Training images, in [0, 1].
    y : uint8 array of shape (n,)
        Their labels, in [0, 10).
    X_test : float32 array of shape (n_test, rows * columns)
    y_test : uint8 array of shape (n_test,)

    Raises
    ------
    ValueError
        If a file is damaged or hostile, if counts or shapes disagree, or if a label is out of
        range. The message names the file. All headers are checked before any image is read.
    OSError
        If a file is missing or cannot be read.

    Examples
    --------
    >>> from fastce.mlp import load_mnist
    >>> X, y, X_test, y_test = load_mnist()
    >>> X.shape, X_test.shape
    ((10000, 784), (2000, 784))
    >>> y[:5].tolist()
    [5, 1, 3, 6, 1]
    """
    folder = _folder(path)
    image_files = [_find(folder, name) for name in IMAGES]
    label_files = [_find(folder, name) for name in LABELS]
    train_shape, test_shape = map(_check_headers, image_files, label_files)
    if train_shape[1:] != test_shape[1:]:
        raise ValueError(
            f"{image_files[1]}: expected images of shape {train_shape[1:]} as in "
            f"{image_files[0].name}, got {test_shape[1:]}"
        )
    # The labels first: they are small, and may spare the images.
    y, y_test = map(_read_labels, label_files)
    X, X_test = map(_read_images, image_files)
    return X, y, X_test, y_test


def load_test_set(path: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The last two arrays of `load_mnist`, for whose sake no training file is read or needed."""
    folder = _folder(path)
    images, labels = _find(folder, IMAGES[1]), _find(folder, LABELS[1])
    _check_headers(images, labels)
    y_test = _read_labels(labels)
    return _read_images(images), y_test
