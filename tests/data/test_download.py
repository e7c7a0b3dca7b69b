import contextlib
import hashlib
import http.client
import io
import socket
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from onecycle.data import cifar10
from onecycle.data import download as cifar10_files
from onecycle.data.cifar10 import load_cifar10, prepare_cifar10
from onecycle.data.download import CIFAR10_ARCHIVE, CIFAR10_FOLDER, download_cifar10
from onecycle.errors import DataError, StorageError

# Noise, so that the archive is more than two of the pieces that a download comes in.
BATCHES = {
    name: np.random.default_rng(seed).bytes(450_000)
    for seed, name in enumerate(
        ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    )
}


def make_archive():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in BATCHES.items():
            member = tarfile.TarInfo(f"{CIFAR10_FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = make_archive()


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(autouse=True)
def miniature(monkeypatch):
    """The archive above in the place of the official one, and no mirror to reach."""
    monkeypatch.setattr(cifar10_files, "CIFAR10_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(cifar10_files, "CIFAR10_BYTES", len(ARCHIVE))
    monkeypatch.setattr(cifar10_files, "CIFAR10_MIRRORS", ())
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def fill_disk():
    """Once called, no file can grow beyond 100 kB, for root neither."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A mirror on the loopback address. Each way to answer is a function of the request's handler.


def answer(handler, body, status=200, length=None, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def good(handler):
    answer(handler, ARCHIVE)


def not_found(handler):
    handler.send_error(404)


def unavailable(handler):
    handler.send_error(503)


def html(handler):
    answer(handler, b"<html>We have moved</html>", **{"Content-Type": "text/html"})


def empty(handler):
    answer(handler, b"")


def one_byte_short(handler):
    answer(handler, ARCHIVE[:-1])


def one_byte_flipped(handler):
    answer(handler, ARCHIVE[:-100] + bytes([ARCHIVE[-100] ^ 1]) + ARCHIVE[-99:])


def one_byte_more(handler):
    answer(handler, ARCHIVE + b"x")


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(64):
        handler.wfile.write(bytes(1 << 20))
        handler.server.sent += 1 << 20


def closed_midway(handler):
    answer(handler, ARCHIVE[: len(ARCHIVE) // 2], length=len(ARCHIVE))


def reset_midway(handler):
    closed_midway(handler)
    handler.wfile.flush()
    # Closing with a linger of 0 sends a reset.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def broken_chunks(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"5\r\nabcde\r\nzz\r\n")


def no_http(handler):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def silent(handler):
    if not handler.server.closing.wait(20):
        handler.server.waited_in_vain = True


def silent_midway(handler):
    closed_midway(handler)
    handler.wfile.flush()
    silent(handler)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        # The other end may well have gone.
        with contextlib.suppress(OSError):
            self.server.answers[name](self)

    def log_message(self, *_):
        pass

    def finish(self):
        with contextlib.suppress(OSError):
            super().finish()


class PlainConnection(http.client.HTTPConnection):
    """Lets a server without a certificate stand for an https one."""

    def __init__(self, host, *, context=None, check_hostname=None, **kwargs):
        super().__init__(host, **kwargs)


@pytest.fixture
def server(monkeypatch):
    """``server.address(answer)`` makes an https address; ``server.asked`` lists what came."""
    monkeypatch.setattr(http.client, "HTTPSConnection", PlainConnection)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None
    httpd.asked, httpd.answers, httpd.sent = [], {}, 0
    httpd.closing, httpd.waited_in_vain = threading.Event(), False

    def address(answer, scheme="https", name=None):
        name = name or answer.__name__
        httpd.answers[name] = answer
        return f"{scheme}://127.0.0.1:{httpd.server_port}/{name}"

    httpd.address = address
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.closing.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def mirrors(monkeypatch):
    """Sets the addresses to try."""
    return lambda *urls: monkeypatch.setattr(cifar10_files, "CIFAR10_MIRRORS", urls)


# Finding and unpacking


@pytest.mark.parametrize("download", [False, True])
def test_each_layout_is_found_without_a_download(tmp_path, server, mirrors, download):
    mirrors(server.address(good))
    (tmp_path / "official" / CIFAR10_FOLDER).mkdir(parents=True)
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    (tmp_path / "pictures" / "test").mkdir()
    for given, found in (
        ("official", "official"),
        (f"official/{CIFAR10_FOLDER}", "official"),
        ("pictures", "pictures"),
    ):
        assert prepare_cifar10(tmp_path / given, download=download) == tmp_path / found
        assert prepare_cifar10(str(tmp_path / given), download=download) == tmp_path / found
    assert server.asked == []
    assert names(tmp_path / "official") == [CIFAR10_FOLDER]
    assert names(tmp_path / "pictures") == ["test", "train"]


@pytest.mark.parametrize(
    "given, archive",
    [("", CIFAR10_ARCHIVE), (CIFAR10_ARCHIVE, CIFAR10_ARCHIVE), ("c10.tgz", "c10.tgz")],
    ids=["its folder", "itself", "itself renamed"],
)
def test_an_archive_is_unpacked_whole_and_found_again(tmp_path, given, archive):
    (tmp_path / archive).write_bytes(ARCHIVE)
    for _ in range(2):
        assert prepare_cifar10(tmp_path / given) == tmp_path
        assert content(tmp_path / CIFAR10_FOLDER) == BATCHES
        assert names(tmp_path) == sorted([archive, CIFAR10_FOLDER])
    assert (tmp_path / archive).read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    "archive",
    [ARCHIVE[:-1], ARCHIVE[:-100] + bytes([ARCHIVE[-100] ^ 1]) + ARCHIVE[-99:], b""],
    ids=["short", "flipped byte", "empty"],
)
@pytest.mark.parametrize("given", ["", CIFAR10_ARCHIVE], ids=["its folder", "itself"])
def test_an_archive_with_another_digest_is_refused_and_not_unpacked(tmp_path, archive, given):
    (tmp_path / CIFAR10_ARCHIVE).write_bytes(archive)
    with pytest.raises(DataError) as caught:
        prepare_cifar10(tmp_path / given, download=True)
    assert str(tmp_path / CIFAR10_ARCHIVE) in str(caught.value)
    assert hashlib.sha256(archive).hexdigest() in str(caught.value)
    assert content(tmp_path) == {CIFAR10_ARCHIVE: archive}


@pytest.mark.parametrize("name", ["", "not there"])
def test_without_data_and_download_the_message_tells_the_way_out(tmp_path, server, mirrors, name):
    mirrors(server.address(good))
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path / name)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / name),
        CIFAR10_ARCHIVE,
        "170,498,071 bytes",
        cifar10.CIFAR10_SHA256,
        "--data-dir",
        "--download",
        "download=True",
    ):
        assert part in message
    assert server.asked == []
    assert names(tmp_path) == []


def test_download_is_unpacked(tmp_path, server, mirrors):
    mirrors(server.address(good))
    assert prepare_cifar10(tmp_path / "a" / "b", download=True) == tmp_path / "a" / "b"
    assert content(tmp_path / "a" / "b" / CIFAR10_FOLDER) == BATCHES
    assert names(tmp_path / "a" / "b") == sorted([CIFAR10_ARCHIVE, CIFAR10_FOLDER])


def test_a_disk_that_fills_while_unpacking_leaves_the_archive_alone(tmp_path, fill_disk):
    (tmp_path / CIFAR10_ARCHIVE).write_bytes(ARCHIVE)
    fill_disk()
    with pytest.raises(StorageError, match=CIFAR10_ARCHIVE):
        prepare_cifar10(tmp_path)
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


# Downloading


def test_download_arrives_byte_for_byte(tmp_path, server, mirrors):
    mirrors(server.address(good))
    file = download_cifar10(str(tmp_path / "new"))
    assert file == tmp_path / "new" / CIFAR10_ARCHIVE
    assert content(tmp_path / "new") == {CIFAR10_ARCHIVE: ARCHIVE}


def test_progress_grows_to_the_total(tmp_path, server, mirrors):
    mirrors(server.address(good))
    seen = []
    download_cifar10(tmp_path, progress=lambda done, total: seen.append((done, total)))
    done = [bytes_so_far for bytes_so_far, _ in seen]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert done[-1] == len(ARCHIVE)
    assert {total for _, total in seen} == {len(ARCHIVE)}


BAD = [
    not_found, unavailable, html, empty, one_byte_short, one_byte_flipped, one_byte_more,
    closed_midway, reset_midway, broken_chunks, no_http,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_after_a_bad_mirror_the_next_is_used(tmp_path, server, mirrors, bad):
    mirrors(server.address(bad), server.address(good))
    download_cifar10(tmp_path)
    assert server.asked == [bad.__name__, "good"]
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


@pytest.mark.parametrize("silence", [silent, silent_midway], ids=lambda bad: bad.__name__)
def test_a_mirror_that_falls_silent_is_left(tmp_path, server, mirrors, monkeypatch, silence):
    def once_asked(handler):
        # The next mirror may take its time: the machine can be busy.
        monkeypatch.setattr(cifar10_files, "DOWNLOAD_TIMEOUT_S", 30)
        silence(handler)

    monkeypatch.setattr(cifar10_files, "DOWNLOAD_TIMEOUT_S", 1.0)
    mirrors(server.address(once_asked), server.address(good))
    download_cifar10(tmp_path)
    assert server.asked == ["once_asked", "good"]
    assert not server.waited_in_vain
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


def test_a_mirror_that_sends_without_end_is_left_early(tmp_path, server, mirrors):
    mirrors(server.address(endless), server.address(good))
    download_cifar10(tmp_path)
    # What was sent beyond the archive is what waits in the buffers.
    assert server.sent < 32 << 20
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


def test_after_a_good_mirror_no_other_is_asked(tmp_path, server, mirrors):
    mirrors(server.address(good), server.address(html))
    download_cifar10(tmp_path)
    assert server.asked == ["good"]


def test_where_all_mirrors_are_bad_each_is_named_with_its_reason(tmp_path, server, mirrors):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    urls = [
        *map(server.address, BAD),
        f"https://127.0.0.1:{port}/nobody",
        "https:///no-host",
        "https://[broken",
        "no address",
    ]
    mirrors(*urls)
    with pytest.raises(DataError) as caught:
        download_cifar10(tmp_path)
    message = str(caught.value)
    assert names(tmp_path) == []
    for url in urls:
        reason = message.partition(f"{url} (")[2].partition(")")[0]
        assert len(reason) > 5, url
    assert "404" in message
    assert "more than the expected" in message
    assert CIFAR10_ARCHIVE in message
    assert cifar10_files.CIFAR10_SHA256 in message
    assert message.splitlines() == [message]


def test_an_error_without_words_has_its_name_for_a_reason(tmp_path, server, mirrors, monkeypatch):
    def fail(*_, **__):
        raise ConnectionResetError

    monkeypatch.setattr(http.client.HTTPResponse, "read", fail)
    mirrors(server.address(good))
    with pytest.raises(DataError, match="ConnectionResetError"):
        download_cifar10(tmp_path)


def test_addresses_in_the_environment_come_first(tmp_path, server, mirrors, monkeypatch):
    mirrors(server.address(html), server.address(good))
    mine = [server.address(not_found), server.address(one_byte_more)]
    monkeypatch.setenv("CIFAR10_URL", f" {mine[0]}  {mine[1]} ")
    download_cifar10(tmp_path)
    assert server.asked == ["not_found", "one_byte_more", "html", "good"]


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_an_address_that_is_not_https_is_refused_unasked(tmp_path, server, mirrors, scheme):
    (tmp_path / "local").write_bytes(ARCHIVE)
    url = server.address(good, scheme)
    if scheme == "file":
        url = (tmp_path / "local").as_uri()
    mirrors(url)
    with pytest.raises(DataError, match="not an https address") as caught:
        download_cifar10(tmp_path / "new")
    assert url in str(caught.value)
    assert server.asked == []
    assert names(tmp_path / "new") == []


def redirect(url):
    return lambda handler: answer(handler, b"", status=302, Location=url)


def test_a_redirect_to_https_is_followed(tmp_path, server, mirrors):
    mirrors(server.address(redirect(server.address(good)), name="moved"))
    download_cifar10(tmp_path)
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


def test_a_redirect_to_http_is_refused(tmp_path, server, mirrors):
    mirrors(server.address(redirect(server.address(good, "http")), name="moved"))
    with pytest.raises(DataError, match="not an https address"):
        download_cifar10(tmp_path)
    assert names(tmp_path) == []


def test_a_redirect_to_http_is_not_asked_on_the_way_to_https_either(tmp_path, server, mirrors):
    by_http = server.address(redirect(server.address(good)), "http", name="by_http")
    mirrors(server.address(redirect(by_http), name="moved"))
    with pytest.raises(DataError, match="not an https address"):
        download_cifar10(tmp_path)
    assert server.asked == ["moved"]
    assert names(tmp_path) == []


def test_a_redirect_in_a_circle_is_a_bad_mirror(tmp_path, server, mirrors):
    circle = server.address(good, name="circle")
    server.answers["circle"] = redirect(circle)
    mirrors(circle, server.address(good))
    download_cifar10(tmp_path)
    assert content(tmp_path) == {CIFAR10_ARCHIVE: ARCHIVE}


def test_an_interrupted_download_leaves_nothing(tmp_path, server, mirrors):
    def interrupt(*_):
        raise KeyboardInterrupt

    mirrors(server.address(good))
    with pytest.raises(KeyboardInterrupt):
        download_cifar10(tmp_path, progress=interrupt)
    assert names(tmp_path) == []


# Folders that cannot be written


@pytest.mark.parametrize(
    "get",
    [download_cifar10, lambda path: prepare_cifar10(path, download=True)],
    ids=["download", "prepare"],
)
def test_a_file_in_the_place_of_a_folder_is_told_before_any_download(
    tmp_path, server, mirrors, get
):
    (tmp_path / "file").write_text("in the way")
    mirrors(server.address(good))
    with pytest.raises(StorageError) as caught:
        get(tmp_path / "file" / "cifar10")
    assert str(tmp_path / "file" / "cifar10") in str(caught.value)
    assert server.asked == []


def test_a_disk_that_fills_is_no_fault_of_the_mirror(tmp_path, server, mirrors, fill_disk):
    mirrors(server.address(good), server.address(html))
    fill_disk()
    with pytest.raises(StorageError) as caught:
        download_cifar10(tmp_path)
    assert str(tmp_path / CIFAR10_ARCHIVE) in str(caught.value)
    assert server.asked == ["good"]
    assert names(tmp_path) == []


def test_a_name_that_cannot_be_taken_is_no_fault_of_the_mirror(
    tmp_path, server, mirrors, monkeypatch
):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cifar10_files.os, "replace", fail)
    mirrors(server.address(good), server.address(html))
    with pytest.raises(StorageError, match="Permission denied") as caught:
        download_cifar10(tmp_path)
    assert str(tmp_path / CIFAR10_ARCHIVE) in str(caught.value)
    assert server.asked == ["good"]
    assert names(tmp_path) == []
