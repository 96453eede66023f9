"""Fetches the full MNIST from its public mirrors into a cache folder, and believes only SHA-256.

The only file that touches the network; nothing but the command line's `--download` calls it.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .files import open_regular, replacing

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class Content(NamedTuple):
    n_bytes: int
    sha256: str


# Of the unpacked files: mirrors may compress them anew, and Fashion-MNIST and KMNIST bear the same
# names. The hashes were taken of files whose MD5 sums are the published ones.
FILES = {
    "train-images-idx3-ubyte.gz": Content(
        47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": Content(
        60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": Content(
        7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte.gz": Content(
        10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}

# A gzip file is at most a few bytes in 16 KB larger than what it holds (blocks stored as they are).
GZIP_SLACK = 65_536

# Seconds: without any byte, and for a whole file. 10 MB in ten minutes is 16 KB/s.
TIMEOUT = 30.0
DEADLINE = 600.0


def cache_folder() -> Path:
    """``$FASTCE_CACHE``, or ``fastce`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("FASTCE_CACHE"):
        return Path(folder)
    # The XDG specification: relative paths are to be ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "fastce"


def _complaint(packed: bytes, content: Content) -> str | None:
    """What is wrong with the bytes of a file, plain or gzipped; None if nothing is."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            plain = file.read(content.n_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"damaged gzip file: {error}"
    if hashlib.sha256(plain).hexdigest() != content.sha256:
        return "wrong SHA-256: not the content of MNIST"
    return None


def _is_cached(path: Path, content: Content) -> bool:
    try:
        with open_regular(path) as (file, size):
            limit = content.n_bytes + GZIP_SLACK
            return size <= limit and _complaint(file.read(limit), content) is None
    except FileNotFoundError:
        return False


def _fetch(url: str, most: int, timeout: float, deadline: float) -> bytes:
    """The body behind the URL, if it has at most `most` bytes and comes in time."""
    request = urllib.request.Request(url, headers={"User-Agent": "fastce"})
    end = time.monotonic() + deadline
    body = bytearray()
    with urllib.request.urlopen(request, timeout=timeout) as response:
        # read1 returns what is there, so that a trickle cannot outlive the deadline.
        while chunk := response.read1(65_536):
            body += chunk
            if len(body) > most:
                raise ValueError(f"more than {most} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"not complete after {deadline:g} s")
    return bytes(body)


def download_mnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    timeout: float = TIMEOUT,
    deadline: float = DEADLINE,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """
    Make sure that the four files of MNIST are in a folder, and right.

    Parameters
    ----------
    folder : str or path, optional
        By default ``mnist`` in the cache folder: ``$FASTCE_CACHE``, ``$XDG_CACHE_HOME/fastce`` or
        ``~/.cache/fastce``. Files that are there and right are not fetched again.
    mirrors : sequence of str
        Base URLs, each ending in a slash, in the order in which they are asked.
    timeout, deadline : float
        Seconds: for a byte to come, and for a whole file.
    say : callable
        Gets a line for each file that is fetched.

    Returns
    -------
    Path
        The folder, as `load_mnist` takes it.

    Raises
    ------
    OSError
        If no mirror has a file, naming the file and what each mirror did; or if the folder cannot
        be written. A file appears under its name only after its SHA-256 was found right.
    """
    folder = cache_folder() / "mnist" if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"cache folder {folder}") from None
    for name, content in FILES.items():
        if _is_cached(folder / name, content):
            continue
        complaints = []
        for mirror in mirrors:
            say(f"downloading {mirror}{name}")
            try:
                packed = _fetch(mirror + name, content.n_bytes + GZIP_SLACK, timeout, deadline)
                complaint = _complaint(packed, content)
            except urllib.error.HTTPError as error:
                error.close()  # it is a file too, and Python 3.13 warns of one left open
                complaint = str(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                complaint = " ".join(str(error).split()) or type(error).__name__
            if complaint is None:
                with replacing(folder / name) as file:
                    file.write(packed)
                break
            complaints.append(f"{mirror}: {complaint}")
        else:
            raise OSError(f"--download: no mirror gave {name} ({'; '.join(complaints)})")
    return folder
