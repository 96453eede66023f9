"""load_mnist: the embedded subset, folders of the four files, and everything that can be wrong."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from mnist_files import NAMES, gzipped, idx, make_set, write_set

from fastce.mlp import load_mnist
from fastce.mlp.mnist import EMBEDDED

FULL = os.environ.get("FASTCE_MNIST_DIR")


def test_embedded_subset():
    X, y, X_test, y_test = load_mnist()
    assert X.shape == (10_000, 784)
    assert X_test.shape == (2_000, 784)
    assert X.dtype == X_test.dtype == np.float32
    assert y.dtype == y_test.dtype == np.uint8
    assert (X.min(), X.max()) == (0, 1)
    # All classes, none below 8 %: every sixth image keeps MNIST's mixture.
    for labels in (y, y_test):
        assert np.bincount(labels).min() > 0.07 * len(labels)


def test_embedded_files_hold_no_time():
    for name in NAMES:
        packed = (EMBEDDED / f"{name}.gz").read_bytes()
        assert packed[4:8] == bytes(4)
        assert packed[3] == 0  # nor a name


@pytest.mark.skipif(not FULL, reason="FASTCE_MNIST_DIR is not set")
def test_embedded_subset_is_every_sixth_and_fifth_image():
    for embedded, full, step in zip(load_mnist(), load_mnist(FULL), (6, 6, 5, 5), strict=True):
        np.testing.assert_array_equal(embedded, full[::step])


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzipped), ("", gzipped)])
def test_names_that_circulate(tmp_path, rng, dotted, suffix, pack):
    arrays = make_set(rng)
    write_set(tmp_path, arrays, suffix, pack)
    if dotted:
        for path in tmp_path.iterdir():
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    X, y, X_test, y_test = load_mnist(str(tmp_path))
    np.testing.assert_array_equal(y, arrays[1])
    np.testing.assert_array_equal(y_test, arrays[3])
    np.testing.assert_array_equal(X, arrays[0].reshape(200, 35) / np.float32(255))
    np.testing.assert_array_equal(X_test, arrays[2].reshape(50, 35) / np.float32(255))


def bad_set(rng, position, file):
    arrays = [idx(array) for array in make_set(rng)]
    arrays[position] = file
    return arrays


LABELS = np.arange(200, dtype=np.uint8) % 10
IMAGES = np.zeros((200, 7, 5), np.uint8)


@pytest.mark.parametrize(
    ("position", "file", "message"),
    [
        (1, idx(np.r_[LABELS[:3], np.uint8(12), LABELS[4:]]), r"label\[3\] is 12, outside \[0, 10"),
        (1, idx(np.r_[LABELS[:-1], np.uint8(10)]), r"label\[199\] is 10, outside"),
        (1, idx(LABELS[:-1]), "a label for each of the 200 images of .*, got 199"),
        (1, idx(LABELS.astype("i4")), "expected labels, uint8 of shape .n,., got int32"),
        (1, idx(LABELS.reshape(2, 100)), "expected labels"),
        (1, idx(IMAGES), "expected labels"),
        (1, b"", "not an IDX file"),
        (0, idx(LABELS), "expected images, uint8 of shape .n, rows, columns., got"),
        (0, idx(IMAGES.astype("f4")), "got float32"),
        (0, idx(IMAGES[:, :0]), "expected images"),
        (0, idx(IMAGES)[:-5], "truncated"),
        (0, idx(IMAGES) + b"!", "1 trailing bytes"),
        (2, idx(np.zeros((50, 5, 7), np.uint8)), r"shape \(7, 5\) as in .*, got \(5, 7\)"),
        (2, gzip.compress(idx(np.zeros((50, 7, 5), np.uint8)))[:-4], "damaged gzip"),
        (3, idx(np.full(50, 255, np.uint8)), r"label\[0\] is 255"),
    ],
)
def test_bad_files_are_named(tmp_path, rng, position, file, message):
    for name, data in zip(NAMES, bad_set(rng, position, file), strict=True):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / NAMES[position]}: ")


@pytest.mark.parametrize(("path", "error"), [(3, TypeError), ("a\0", ValueError)])
def test_what_names_no_folder_is_refused(path, error):
    with pytest.raises(error, match=r"^path: expected a folder, got "):
        load_mnist(path)


def test_empty_sets_are_refused(tmp_path, rng):
    write_set(tmp_path, [a[:0] for a in make_set(rng)])
    with pytest.raises(ValueError, match=r"expected images, .* of .0, 7, 5."):
        load_mnist(tmp_path)


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_is_named(tmp_path, rng, missing):
    write_set(tmp_path, make_set(rng))
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_mnist(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere'$"):
        load_mnist(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        load_mnist(Path(__file__))
