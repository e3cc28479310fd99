"""Downloads, against a local server that drops, truncates, corrupts, redirects, refuses and changes its mind."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants

from uniformerv2.errors import CheckpointError
from uniformerv2.weights import download as module
from uniformerv2.weights.download import download, find_download, hub_file

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
    """As a good server: ranges, If-Range, strong ETags, 404."""
    body = handler.server.files.get(unquote(handler.path))
    if body is None:
        return handler.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
    tag = f'"{hashlib.md5(body).hexdigest()}"'
    start = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
    if start == "0" or handler.headers.get("If-Range") != tag:
        return handler.answer(200, body, ETag=tag)
    if int(start) >= len(body):
        return handler.answer(416)
    extent = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return handler.answer(206, body[int(start) :], ETag=tag, Content_Range=extent)


def drops_after(count: int, status: int = 200, **headers: str) -> Behaviour:
    """Tells the whole length, sends the first bytes of BODY and hangs up."""
    headers = headers or {"ETag": f'"{hashlib.md5(BODY).hexdigest()}"'}
    return lambda handler: handler.answer(status, BODY[:count], len(BODY), **headers)


def resets(handler: Handler) -> None:
    """Hangs up without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def answers(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    return lambda handler: handler.answer(status, body, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no mirror, and no waiting between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("UNIFORMERV2_HUB", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 5.0)
    return tmp_path / "cache"


def ranges(server: Server) -> list[str]:
    return [headers.get("Range", "") for _, headers in server.requests]


def files_in(folder: Path) -> set[str]:
    """Names of what lies below a folder, without notes and locks."""
    found = {path.name for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith((".json", ".lock"))}


def one_line(error: pytest.ExceptionInfo[CheckpointError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- what arrives


def test_a_file_is_downloaded_once_and_lies_in_the_hub_cache(server: Server, cache: Path) -> None:
    url = f"{server.url}/model.pth"
    path = download(url, sha256=SHA256)
    assert path.read_bytes() == BODY
    assert path.name == "model.pth"
    assert path.is_relative_to(cache / "uniformerv2")
    assert download(url, sha256=SHA256) == download(url, sha256_head=SHA256[:8].upper()) == find_download(url) == path
    assert len(server.requests) == 1
    assert files_in(cache) == {"model.pth"}


def test_equal_names_at_different_addresses_do_not_meet(server: Server) -> None:
    server.files |= {"/a/x.pth": b"a", "/b/x.pth": b"b"}
    assert download(f"{server.url}/a/x.pth").read_bytes() == b"a"
    assert download(f"{server.url}/b/x.pth").read_bytes() == b"b"


def test_names_with_plus_and_space(server: Server) -> None:
    server.files |= {"/k400+k710 b.pyth": b"a"}
    for url in ("k400+k710 b.pyth", "k400+k710%20b.pyth"):
        path = download(f"{server.url}/{url}")
        assert (path.name, path.read_bytes()) == ("k400+k710 b.pyth", b"a")


@pytest.mark.parametrize("broken", [drops_after(200_000), drops_after(0), resets, answers(503), answers(429)])
def test_a_broken_download_goes_on(server: Server, broken: Behaviour) -> None:
    server.script = [broken, broken]
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY
    assert len(server.requests) == 3


def test_only_what_is_missing_is_asked_for(server: Server) -> None:
    server.script = [drops_after(200_000)]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert ranges(server) == ["", "bytes=200000-"]
    assert server.requests[1][1]["If-Range"] == f'"{hashlib.md5(BODY).hexdigest()}"'


def test_a_later_call_goes_on_where_the_former_one_gave_up(server: Server, cache: Path) -> None:
    server.script = [drops_after(200_000)] + [resets] * (module.ATTEMPTS - 1)
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/model.pth", sha256=SHA256)
    one_line(error, f"{server.url}/model.pth", str(module.ATTEMPTS))
    assert files_in(cache) == {"model.pth.part"}
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY
    assert ranges(server)[-1] == "bytes=200000-"
    assert files_in(cache) == {"model.pth"}


def test_a_server_that_ignores_ranges_starts_anew(server: Server) -> None:
    tag = f'"{hashlib.md5(BODY).hexdigest()}"'
    server.script = [drops_after(200_000), answers(200, BODY, ETag=tag)]
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize("headers", [{"X_Nothing": "1"}, {"ETag": 'W/"weak"'}])
def test_without_a_validator_nothing_is_stitched_together(server: Server, headers: dict[str, str]) -> None:
    server.script = [drops_after(200_000, **headers)]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert ranges(server) == ["", ""]


def test_a_date_validates_where_there_is_no_tag(server: Server) -> None:
    date = "Mon, 19 Dec 2022 00:00:00 GMT"
    rest = answers(206, BODY[9:], Content_Range=f"bytes 9-{len(BODY) - 1}/{len(BODY)}", Last_Modified=date)
    server.script = [drops_after(9, Last_Modified=date), rest]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert server.requests[1][1]["If-Range"] == date


def test_a_file_that_changes_between_attempts_is_never_mixed(server: Server) -> None:
    server.script = [drops_after(200_000)]
    server.files["/model.pth"] = OTHER
    assert download(f"{server.url}/model.pth").read_bytes() == OTHER


def test_a_file_that_changes_and_breaks_off_again_is_never_mixed(server: Server) -> None:
    server.script = [drops_after(200_000), drops_after(0, ETag=f'"{hashlib.md5(OTHER).hexdigest()}"')]
    server.files["/model.pth"] = OTHER
    assert download(f"{server.url}/model.pth").read_bytes() == OTHER


@pytest.mark.parametrize("extent", ["bytes 7-511999/512000", "nonsense"])
def test_a_server_that_sends_another_part_is_not_believed(server: Server, extent: str) -> None:
    server.script = [drops_after(200_000), answers(206, BODY[7:], Content_Range=extent)]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert ranges(server)[2] == ""


def test_a_part_longer_than_the_file_is_thrown_away(server: Server) -> None:
    server.script = [drops_after(200_000), answers(416)]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert ranges(server)[2] == ""


def test_redirections_are_followed(server: Server) -> None:
    server.script = [answers(302, Location="/moved"), answers(301, Location=f"{server.url}/model.pth")]
    assert download(f"{server.url}/start.pth", sha256=SHA256).read_bytes() == BODY
    server.script = [answers(307, Location="/model.pth"), drops_after(9), answers(307, Location="/model.pth")]
    assert download(f"{server.url}/again.pth").read_bytes() == BODY
    assert ranges(server)[-1] == "bytes=9-"


def test_a_server_that_tells_no_length(server: Server) -> None:
    server.script = [lambda handler: handler.answer(200, BODY, -1)]
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


def test_chunks_that_break_off(server: Server) -> None:
    server.script = [lambda handler: handler.answer(200, b"5\r\nabcde\r\n5\r\nab", -1, Transfer_Encoding="chunked")]
    assert download(f"{server.url}/model.pth").read_bytes() == BODY


def test_callers_that_want_the_same_file_download_it_once(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: download(f"{server.url}/model.pth", sha256=SHA256), range(8)))
    assert len(paths) == 1
    assert paths.pop().read_bytes() == BODY
    assert len(server.requests) == 1


# --- what does not arrive


def test_a_corrupt_file_is_removed_and_both_hashes_are_named(server: Server, cache: Path) -> None:
    wrong = bytes([BODY[0] ^ 1]) + BODY[1:]
    server.script = [answers(200, wrong)]
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/model.pth", sha256=SHA256)
    one_line(error, f"{server.url}/model.pth", SHA256, hashlib.sha256(wrong).hexdigest())
    assert files_in(cache) == set()
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


def test_the_published_head_of_a_hash_is_checked_too(server: Server, cache: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/model.pth", sha256_head="00000000")
    one_line(error, SHA256, "00000000")
    assert files_in(cache) == set()


def test_a_file_that_always_comes_short(server: Server, cache: Path) -> None:
    server.script = [drops_after(1000, X_Nothing="1")] * module.ATTEMPTS
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/model.pth")
    one_line(error, "byte 1000 of 512000")
    assert "model.pth" not in files_in(cache)


@pytest.mark.parametrize(
    ("behaviour", "part"),
    [
        (answers(404, b"<Error><Code>NoSuchBucket</Code></Error>"), "404 NoSuchBucket"),
        (answers(404), "404 Not Found"),
        (answers(403), "403 Forbidden"),
        (answers(401), "401 Unauthorized"),
        (answers(200, b"<html>sign in</html>", Content_Type="text/html; charset=utf-8"), "200 with a web page"),
        (answers(200, b""), "200 with an empty file"),
        (answers(200, b"x", Content_Encoding="gzip"), "gzip"),
        (answers(302, Location="file:///etc/passwd"), "302"),
        (answers(302, Location="ftp://127.0.0.1/model.pth"), "ftp://127.0.0.1/model.pth"),
    ],
)
def test_answers_that_are_no_file(server: Server, cache: Path, behaviour: Behaviour, part: str) -> None:
    server.script = [behaviour]
    url = f"{server.url}/absent.pth"
    with pytest.raises(CheckpointError) as error:
        download(url)
    one_line(error, url, part)
    assert files_in(cache) == set()


def test_a_redirection_that_never_ends(server: Server) -> None:
    server.script = [answers(302, Location="/model.pth")] * 50
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/model.pth")
    one_line(error, "302")


def test_https_is_not_left_for_http() -> None:
    request = module.urllib.request.Request("https://a.example/model.pth")
    with pytest.raises(CheckpointError, match=r"redirects to http://b\.example"):
        module._Redirects().redirect_request(request, None, 302, "", {}, "http://b.example/model.pth")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.example/x",
        "model.pth",
        "http:///x",
        "http://a.example/",
        "http://a.example/..",
        "http://a.example/a%2Fb",
        "http://[a/x",
    ],
)
def test_addresses_that_are_refused(url: str, cache: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        download(url)
    one_line(error, url)
    assert not cache.exists()


def test_a_server_that_is_not_there(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(CheckpointError) as error:
        download(f"http://127.0.0.1:{port}/model.pth")
    one_line(error, f"http://127.0.0.1:{port}/model.pth", "refused")


# --- the cache


def test_offline_the_cache_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download(f"{server.url}/model.pth")
    server.shutdown()
    server.server_close()
    assert download(f"{server.url}/model.pth", sha256=SHA256) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(f"{server.url}/model.pth") == path
    with pytest.raises(CheckpointError) as error:
        download(f"{server.url}/other.pth")
    one_line(error, f"{server.url}/other.pth", "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(BODY[:9]), lambda path: path.write_bytes(OTHER + b"x")]
)
def test_a_cached_file_that_was_spoilt_is_replaced(server: Server, spoil: Callable[[Path], None]) -> None:
    path = download(f"{server.url}/model.pth", sha256=SHA256)
    spoil(path)
    assert download(f"{server.url}/model.pth").read_bytes() == BODY


def test_a_file_cached_without_a_hash_is_held_against_one_that_is_learnt_later(server: Server, cache: Path) -> None:
    server.files["/model.pth"] = OTHER
    assert download(f"{server.url}/model.pth").read_bytes() == OTHER
    server.files["/model.pth"] = BODY
    assert download(f"{server.url}/model.pth", sha256=SHA256).read_bytes() == BODY


# --- the mirror


def test_a_folder_is_used_in_place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    (tmp_path / "model.pth").write_bytes(BODY)
    path = download("http://gone.example/folder/model.pth", sha256=SHA256)
    assert path == tmp_path / "model.pth"
    assert not cache.exists()
    with pytest.raises(CheckpointError) as error:
        download("http://gone.example/folder/model.pth", sha256_head="00000000")
    one_line(error, str(tmp_path / "model.pth"), SHA256, "00000000")
    assert path.exists()  # it is not ours to remove


def test_what_the_folder_has_not_is_downloaded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    assert find_download(f"{server.url}/model.pth") is None
    assert download(f"{server.url}/model.pth").read_bytes() == BODY


def test_a_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError) as error:
        download("http://gone.example/model.pth")
    one_line(error, str(tmp_path / "absent"), "UNIFORMERV2_HUB")


def test_a_mirror_on_the_web(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/mirror/k400+k710.pth"] = OTHER
    monkeypatch.setenv("UNIFORMERV2_HUB", f"{server.url}/mirror/")
    assert download("http://gone.example/a/k400+k710.pth").read_bytes() == OTHER
    monkeypatch.delenv("UNIFORMERV2_HUB")
    assert download("http://gone.example/a/k400+k710.pth").read_bytes() == OTHER  # it is in the cache now


def test_what_the_mirror_on_the_web_has_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", f"{server.url}/mirror")
    assert download(f"{server.url}/model.pth").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/mirror/model.pth", "/model.pth"]


def test_a_mirror_of_another_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", "ftp://mirror.example")
    with pytest.raises(CheckpointError) as error:
        download("http://gone.example/model.pth")
    one_line(error, "ftp://mirror.example/model.pth")


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
    blob, link = tmp_path / "blob", tmp_path / "model.pth"

    def from_cache(repo_id: str, filename: str, revision: str | None) -> str:
        assert (repo_id, filename, revision) == ("owner/name", "model.pth", "v1")
        blob.write_bytes(BODY)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_cache)
    assert hub_file("owner/name", "model.pth", revision="v1", sha256=SHA256) == link
    link.unlink()
    with pytest.raises(CheckpointError) as error:
        hub_file("owner/name", "model.pth", revision="v1", sha256="0" * 64)
    one_line(error, "owner/name", SHA256, "0" * 64)
    assert not link.is_symlink()
    assert not blob.exists()


def test_a_hub_file_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        hub_file("owner/name", "model.safetensors")
    one_line(error, "hf://owner/name/model.safetensors", "cache")
    with pytest.raises(CheckpointError) as error:
        hub_file("not a name", "model.safetensors")
    one_line(error, "not a name")


# --- the bar


def test_the_bar_is_drawn_on_a_terminal_only(
    server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    download(f"{server.url}/model.pth")
    assert capfd.readouterr() == ("", "")
    server.files["/other.pth"] = BODY
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    download(f"{server.url}/other.pth")
    output, errors = capfd.readouterr()
    assert output == ""
    assert "other.pth" in errors
    assert "512.0/512.0 kB" in errors
