"""Downloads from a local server that drops, truncates, corrupts, redirects and refuses."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote
from urllib.request import Request

import huggingface_hub
import pytest
from huggingface_hub import constants

from uniformerv2.errors import CheckpointError
from uniformerv2.weights import download as module
from uniformerv2.weights.download import download, find_download, hub_file
from uniformerv2.weights.image_files import read_image_source

BODY = bytes(range(256)) * 2000  # 512,000 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers the next request as the server's script says, and well once the script is at its end."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        (self.server.script.pop(0) if self.server.script else well)(self)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """A web server with one file at each address in `files`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.files = {"/model.pth": BODY}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up, as they may


def well(handler: Handler) -> None:
    """As a good server: ranges, 404."""
    body = handler.server.files.get(unquote(handler.path))
    if body is None:
        return handler.answer(404)
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if start >= len(body):
        return handler.answer(416)
    extent = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return handler.answer(206, body[start:], Content_Range=extent) if start else handler.answer(200, body)


def answers(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> Behaviour:
    return lambda handler: handler.answer(status, body, length, **headers)


DROPS = answers(200, BODY[:200_000], len(BODY))  # the whole length in the header, then the first bytes and an end


def resets(handler: Handler) -> None:
    """Hangs up without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no mirror."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    for name in ("UNIFORMERV2_HUB", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def ranges(server: Server) -> list[str]:
    return [headers.get("Range", "") for _, headers in server.requests]


def files_in(folder: Path) -> set[str]:
    """Names of the files below a folder, without locks."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def refused(url: str, *parts: str, sha256: str = "") -> None:
    """A download fails with one line that names the address and these parts."""
    with pytest.raises(CheckpointError) as error:
        download(url, sha256=sha256)
    assert "\n" not in str(error.value)
    for part in (url, *parts):
        assert part in str(error.value)


# --- files that arrive


def test_a_file_is_downloaded_once_and_lies_in_the_hub_cache(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/model.pth"
    path = download(url, sha256=SHA256[:8].upper())
    assert (path.name, path.read_bytes()) == ("model.pth", BODY)
    assert path.is_relative_to(cache / "uniformerv2")
    assert download(url, sha256=SHA256) == find_download(url) == path
    assert len(server.requests) == 1
    assert files_in(cache) == {"model.pth"}
    assert capfd.readouterr() == ("", "")  # a bar on terminals only
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(url) == path
    refused(f"{server.url}/other.pth", "HF_HUB_OFFLINE")


def test_equal_names_at_different_addresses_do_not_meet(server: Server) -> None:
    server.files |= {"/a/x.pth": b"a", "/b/x.pth": b"b"}
    assert download(f"{server.url}/a/x.pth").read_bytes() == b"a"
    assert download(f"{server.url}/b/x.pth").read_bytes() == b"b"


def test_names_with_plus_and_space(server: Server) -> None:
    server.files |= {"/k400+k710 b.pyth": b"a"}
    for url in ("k400+k710 b.pyth", "k400+k710%20b.pyth"):
        path = download(f"{server.url}/{url}")
        assert (path.name, path.read_bytes()) == ("k400+k710 b.pyth", b"a")


def test_redirections_are_followed(server: Server) -> None:
    server.script = [answers(302, Location="/moved"), answers(301, Location=f"{server.url}/model.pth")]
    assert download(f"{server.url}/start.pth", sha256=SHA256).read_bytes() == BODY


def test_a_server_that_sends_no_length(server: Server) -> None:
    server.script = [answers(200, BODY, -1)]
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


def test_callers_that_want_the_same_file_download_it_once(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: download(f"{server.url}/model.pth", sha256=SHA256), range(8)))
    assert len(paths) == 1
    assert paths.pop().read_bytes() == BODY
    assert len(server.requests) == 1


# --- downloads that break off


CHUNKED = answers(200, b"5\r\nabcde\r\n5\r\nab", -1, Transfer_Encoding="chunked")


@pytest.mark.parametrize(
    ("broken", "part", "missing"),
    [
        (DROPS, "312000 bytes are missing", "bytes=200000-"),
        (CHUNKED, "broke off", ""),
        (resets, "closed", ""),
        (answers(503), "503", ""),
    ],
)
def test_the_next_call_asks_for_what_is_missing(
    server: Server, cache: Path, broken: Behaviour, part: str, missing: str
) -> None:
    server.script = [broken]
    refused(f"{server.url}/model.pth", part, sha256=SHA256)
    assert "model.pth" not in files_in(cache)
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY
    assert ranges(server) == ["", missing]
    assert files_in(cache) == {"model.pth"}


@pytest.mark.parametrize("again", [answers(200, BODY), answers(206, BODY[200_000:])])
def test_ranges_may_be_ignored(server: Server, again: Behaviour) -> None:
    server.script = [DROPS, again]
    refused(f"{server.url}/model.pth", sha256=SHA256)
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


def test_without_a_hash_nothing_is_stitched_together(server: Server) -> None:
    server.script = [DROPS]
    refused(f"{server.url}/model.pth", "try again")
    server.files["/model.pth"] = OTHER
    assert download(f"{server.url}/model.pth").read_bytes() == OTHER
    assert ranges(server) == ["", ""]


@pytest.mark.parametrize("again", [answers(206, BODY[7:]), answers(206, OTHER[200_000:]), answers(416)])
def test_parts_that_do_not_fit_are_removed(server: Server, cache: Path, again: Behaviour) -> None:
    server.script = [DROPS, again]
    refused(f"{server.url}/model.pth", sha256=SHA256)
    refused(f"{server.url}/model.pth", SHA256, "try again", sha256=SHA256)
    assert files_in(cache) == set()
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


# --- files that do not arrive


def test_a_corrupt_file_is_removed_and_both_hashes_are_named(server: Server, cache: Path) -> None:
    wrong = bytes([BODY[0] ^ 1]) + BODY[1:]
    server.script = [answers(200, wrong)]
    refused(f"{server.url}/model.pth", SHA256, hashlib.sha256(wrong).hexdigest(), sha256=SHA256)
    refused(f"{server.url}/model.pth", SHA256, "00000000", sha256="00000000")
    assert files_in(cache) == set()
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


@pytest.mark.parametrize(
    ("behaviour", "part"),
    [
        (answers(404), "404 Not Found"),
        (answers(403), "403 Forbidden"),
        (answers(401), "401 Unauthorized"),
        (answers(302, Location="file:///etc/passwd"), "302"),
    ],
)
def test_answers_that_are_no_file(server: Server, cache: Path, behaviour: Behaviour, part: str) -> None:
    server.script = [behaviour]
    refused(f"{server.url}/absent.pth", part)
    assert files_in(cache) == set()


def test_a_redirection_that_never_ends(server: Server) -> None:
    server.script = [answers(302, Location="/model.pth")] * 50
    refused(f"{server.url}/model.pth", "302")


def test_no_redirection_leads_from_https_to_http() -> None:
    request = Request("https://a.example/model.pth")
    assert module._Redirects().redirect_request(request, None, 302, "", {}, "https://b.example/model.pth")
    with pytest.raises(URLError, match=r"redirects to http://b\.example"):
        module._Redirects().redirect_request(request, None, 302, "", {}, "http://b.example/model.pth")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://a.example/x", "model.pth", "http:///x"),
        *("http://a.example/", "http://a.example/..", "http://a.example/a%2Fb", "http://[a/x"),
    ],
)
def test_addresses_that_are_refused(url: str, cache: Path) -> None:
    refused(url)
    assert not cache.exists()


def test_a_server_that_is_not_there_or_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.pth"
        refused(url, "refused", "check the network", "UNIFORMERV2_HUB")
        silent.listen()
        refused(url, "timed out", "check the network", "UNIFORMERV2_HUB")


def test_a_hub_that_never_answers_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = [], threading.Event()

    def wait(address: str) -> bool:
        asked.append(address)
        return over.wait()

    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(module, "_answers", wait)
    with pytest.raises(CheckpointError, match=r"owner/name: not on this machine.*check the network"):
        read_image_source("owner/name")
    over.set()
    assert len(asked) == 1


def test_a_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    cache.write_text("a file in the place of the folder")
    refused(f"{server.url}/model.pth", "cannot be written", str(cache))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(server: Server, cache: Path) -> None:
    path = download(f"{server.url}/model.pth")
    path.unlink()
    path.with_name("model.pth.part").symlink_to("/dev/full")
    refused(f"{server.url}/model.pth", "No space left on device", sha256=SHA256)
    assert files_in(cache) == set()


# --- the mirror


def test_a_folder_is_used_in_place(
    server: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    path = tmp_path / "model.pth"
    path.write_bytes(BODY)
    assert download("http://gone.example/folder/model.pth", sha256=SHA256) == path
    assert not cache.exists()
    with pytest.raises(CheckpointError, match=f"{path}.*{SHA256}.*00000000"):
        download("http://gone.example/folder/model.pth", sha256="00000000")
    path.unlink()  # another file is downloaded
    assert find_download(f"{server.url}/model.pth") is None
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'absent'}.*UNIFORMERV2_HUB"):
        download("http://gone.example/model.pth")


def test_a_mirror_on_the_web(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/mirror/k400+k710.pth"] = OTHER
    monkeypatch.setenv("UNIFORMERV2_HUB", f"{server.url}/mirror/")
    assert download("http://gone.example/a/k400+k710.pth").read_bytes() == OTHER
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/mirror/k400%2Bk710.pth", "/mirror/model.pth", "/model.pth"]
    monkeypatch.setenv("UNIFORMERV2_HUB", "ftp://mirror.example")
    assert download("http://gone.example/a/k400+k710.pth").read_bytes() == OTHER  # it is in the cache now
    with pytest.raises(CheckpointError, match=r"ftp://mirror\.example/b\.pth: only http and https"):
        download("http://gone.example/b.pth")


# --- the hub


def test_a_hub_file_out_of_a_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "owner/name").mkdir(parents=True)
    (mirror / "model.pth").write_bytes(OTHER)
    monkeypatch.setenv("UNIFORMERV2_HUB", str(mirror))
    assert hub_file("owner/name", "weights/model.pth").read_bytes() == OTHER
    (mirror / "owner/name/model.pth").write_bytes(BODY)
    assert hub_file("owner/name", "model.pth", sha256=SHA256).read_bytes() == BODY

    monkeypatch.setenv("UNIFORMERV2_HUB", server.url)
    server.files["/owner/name/model.pth"] = OTHER
    assert hub_file("owner/name", "model.pth").read_bytes() == OTHER
    assert hub_file("owner/other", "model.pth").read_bytes() == BODY


def test_a_hub_file_out_of_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection, only the cache is asked."""
    blob, link = tmp_path / "blob", tmp_path / "model.pth"

    def from_cache(repo_id: str, filename: str, revision: str | None, local_files_only: bool) -> str:
        assert (repo_id, filename, revision, local_files_only) == ("owner/name", "model.pth", "v1", True)
        blob.write_bytes(BODY)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_cache)
    assert hub_file("owner/name", "model.pth", revision="v1", sha256=SHA256) == link
    link.unlink()
    with pytest.raises(CheckpointError, match=f"owner/name.*{SHA256}.*{'0' * 64}"):
        hub_file("owner/name", "model.pth", revision="v1", sha256="0" * 64)
    assert not link.is_symlink()
    assert not blob.exists()


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_file_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError, match=r"hf://owner/name/model\.safetensors: not in the cache.*check the netw"):
        hub_file("owner/name", "model.safetensors")
    with pytest.raises(CheckpointError, match="not a name"):
        hub_file("not a name", "model.safetensors")
