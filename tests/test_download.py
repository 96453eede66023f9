"""download_mnist against servers on the loopback address: only what is right arrives."""

import functools
import hashlib
import http.server
import os
import threading
import time

import pytest
from mnist_files import NAMES, gzipped, idx, make_set

from fastce.mlp import download, load_mnist
from fastce.mlp.download import Content, cache_folder, download_mnist

FULL = os.environ.get("FASTCE_MNIST_DIR")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from `files`: bytes, a status, or a function that writes to the connection."""

    def __init__(self, files, requests, *arguments):
        self.files, self.requests = files, requests
        super().__init__(*arguments)

    def do_GET(self):
        self.requests.append(self.path)
        answer = self.files.get(self.path, 404)
        if callable(answer):
            answer(self)
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """serve(files) starts a server and returns its base URL and the list of paths asked for."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(files):
        requests = []
        files = {f"/{name}": answer for name, answer in files.items()}
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, files, requests)
        )
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/", requests

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def files(rng, monkeypatch):
    """A small data set, gzipped, whose hashes stand in for MNIST's."""
    plain = {f"{n}.gz": idx(array) for n, array in zip(NAMES, make_set(rng), strict=True)}
    pinned = {n: Content(len(p), hashlib.sha256(p).hexdigest()) for n, p in plain.items()}
    monkeypatch.setattr(download, "FILES", pinned)
    return {name: gzipped(data) for name, data in plain.items()}


FIRST = f"{NAMES[0]}.gz"


def test_files_arrive_load_and_are_kept(tmp_path, files, serve):
    mirror, requests = serve(files)
    lines = []
    folder = download_mnist(tmp_path / "a" / "b", mirrors=[mirror], say=lines.append)
    assert load_mnist(folder)[0].shape == (200, 35)
    assert lines == [f"downloading {mirror}{name}" for name in files]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    del requests[:]
    assert download_mnist(folder, mirrors=[mirror]) == folder
    assert requests == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"x" * 10**6]
)
def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, files, serve, damage):
    mirror, requests = serve(files)
    download_mnist(tmp_path, mirrors=[mirror])
    del requests[:]
    (tmp_path / FIRST).write_bytes(damage(files[FIRST]))
    download_mnist(tmp_path, mirrors=[mirror])
    assert requests == [f"/{FIRST}"]
    assert (tmp_path / FIRST).read_bytes() == files[FIRST]


def too_much(handler):
    """Without a length and without an end."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        pass


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"\x1f\x8b")


def trickle(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(300):
            handler.wfile.write(b"x")
            time.sleep(0.01)
    except OSError:
        pass


def silence(handler):
    time.sleep(1)


def nonsense(handler):
    handler.wfile.write(b"220 this is not HTTP\r\n")


def redirect_to_a_file(handler):
    handler.send_response(302)
    handler.send_header("Location", "file:///etc/hostname")
    handler.end_headers()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (404, "HTTP Error 404: Not Found"),
        (500, "HTTP Error 500"),
        (gzipped(b"Fashion"), "wrong SHA-256"),
        (b"<html>Log in to the hotel's network</html>", "damaged gzip file: Not a gzipped file"),
        (b"", "wrong SHA-256"),
        (too_much, "more than 72,?552 bytes"),
        (cut_off, "damaged gzip file|IncompleteRead"),
        (trickle, "not complete after 0.3 s"),
        (silence, "timed out"),
        (nonsense, "220 this"),
        (redirect_to_a_file, "HTTP Error 302"),
    ],
)
def test_bad_answers_are_named_and_the_next_mirror_is_asked(
    tmp_path, files, serve, answer, complaint
):
    bad, _ = serve({**files, FIRST: answer})
    options = {"timeout": 0.3, "deadline": 0.3}
    with pytest.raises(OSError, match=complaint) as error:
        download_mnist(tmp_path, mirrors=[bad], **options)
    assert str(error.value).startswith(f"--download: no mirror gave {FIRST} ({bad}: ")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []

    good, requests = serve(files)
    download_mnist(tmp_path, mirrors=[bad, good], **options)
    assert requests == [f"/{FIRST}"]
    assert (tmp_path / FIRST).read_bytes() == files[FIRST]


def test_no_server_at_all(tmp_path, files, serve):
    with pytest.raises(OSError, match=r"no mirror gave"):
        download_mnist(tmp_path, mirrors=["http://127.0.0.1:9/"])


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTCE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fastce"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "fastce"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fastce"
    monkeypatch.setenv("FASTCE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_cache_that_cannot_be_is_named(tmp_path, files):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cache folder .*file"):
        download_mnist(tmp_path / "file", mirrors=[])


@pytest.mark.skipif(not FULL, reason="FASTCE_MNIST_DIR is not set")
def test_the_pinned_hashes_are_those_of_mnist(tmp_path):
    for name, content in download.FILES.items():
        assert download._is_cached(download.Path(FULL) / name, content)


def test_mirrors_are_encrypted_and_distinct():
    assert len({mirror.split("/")[2] for mirror in download.MIRRORS}) >= 2
    assert all(
        mirror.startswith("https://") and mirror.endswith("/") for mirror in download.MIRRORS
    )
