"""How files are opened and replaced here: regular files only, and as a whole or not at all.

Also the .npz archives without times or pickles. What their arrays mean is the business of
classifier.py (the model) and run.py (the checkpoint).
"""

from __future__ import annotations

import fcntl
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

REPLACE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def as_path(path: Any, what: str = "a file name") -> Path:
    """The argument `path`, or an error that names the argument."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected {what}, got {type(path).__name__}") from None
    if not name or "\0" in name or (what == "a file name" and not Path(name).name):
        raise ValueError(f"path: expected {what}, got {name!r}")
    return Path(name)


@contextmanager
def opened(path: str | os.PathLike[str], flags: int) -> Iterator[BinaryIO]:
    """
    A binary file, opened as os.open() takes it: os.O_RDONLY, or REPLACE or APPEND to write.

    A file object that a Ctrl-C takes away between open() and its block would be warned of; a
    descriptor is only a number.
    """
    descriptor = os.open(path, flags, 0o666)
    try:
        with open(descriptor, "wb" if flags & os.O_WRONLY else "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """A file for reading, and its size; never a named pipe, whose open() would block for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{os.fspath(path)}: expected a regular file")
    with opened(path, os.O_RDONLY) as file:
        yield file, os.fstat(file.fileno()).st_size


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    A binary file that takes the place of `path` when the block ends well.

    At any moment, and after a crash or loss of power at any moment, `path` is the old file or
    the new one, whose mode is the old one's. A killed process leaves at most ``.name.<pid>.tmp``
    beside it. A symbolic link stays one; a device or a pipe is refused.
    """
    path = Path(os.path.realpath(path))
    mode = os.stat(path).st_mode if path.exists() else None
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: expected a regular file")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with opened(unfinished, REPLACE) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if mode is not None and stat.S_ISREG(mode):
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
        os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # Name the file that was asked for. A full disk names none at all.
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself has to reach the disk, too
    finally:
        os.close(folder)


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """A folder that no other process may work in meanwhile; a killed one leaves nothing behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name}: another run is using it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def remove_unfinished(path: Path) -> None:
    """What `replacing` left behind beside `path` when its process was killed."""
    for unfinished in path.parent.glob(f".{path.name}.[0-9]*.tmp"):
        unfinished.unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """What `replacing` would replace; a symbolic link to it stays, a folder or a device, too."""
    path = Path(os.path.realpath(path))
    if path.is_file():
        path.unlink()


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write an uncompressed .npz. The same arrays give the same bytes: NumPy dates all to 1980."""
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """
    Read all arrays of an .npz file that save_arrays wrote.

    Raises
    ------
    ValueError
        If the file is anything else, or damaged; the message names it. Pickled objects are
        refused, and so is compression: no array can be larger than the file.
    OSError
        If it cannot be read.
    """
    with open_regular(path) as (file, size):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy only warns of headers that Python 2 wrote
                with zipfile.ZipFile(file) as archive:
                    if sum(member.file_size for member in archive.infolist()) > size:
                        raise ValueError("compressed or overlapping members")
                with np.load(file, allow_pickle=False) as members:
                    arrays = dict(members)
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"{name} is not an array")
            return arrays
        # zipfile and NumPy's header parser raise a dozen types on damaged bytes, undocumented.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{os.fspath(path)}: not a readable .npz file: {reason}") from None
