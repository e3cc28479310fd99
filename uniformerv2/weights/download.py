"""Files from the web, in the hub's cache: resumed, checked against their hash, shared by processes, kept for offline.

A finished file lies in the cache under its own name, and only once its length and hash were found right; what is on
its way lies beside it as `.part`. The environment variable UNIFORMERV2_HUB names a mirror that is asked first: a
folder, whose files are used where they lie, or a base URL. Files are looked up there by name; those of a hub
repository by `owner/name/file`, then by name.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from uniformerv2.errors import CheckpointError
from uniformerv2.weights.files import SUFFIXES

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MIRROR = "UNIFORMERV2_HUB"
ATTEMPTS = 5  # of one download; each goes on where the last one broke off
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubles each time
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes

ABSENT = {403, 404, 410}  # the server has no such file; object stores say 403
PASSING = {408, 429, 500, 502, 503, 504}  # worth another attempt
DROPPED = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Report = Callable[[int, "int | None"], None]  # bytes that are there, bytes in all where known


class _AbsentError(CheckpointError):
    """The server answers, but has no such file."""


class _DroppedError(Exception):
    """An attempt that broke off; the next one goes on from there."""


class _MisfitError(Exception):
    """What came does not continue what is there."""


def download(url: str, *, sha256: str = "", sha256_head: str = "") -> Path:
    """A file of the web as a local file: out of the mirror, the cache, or downloaded.

    A broken download is resumed, by this call a few times and by the next one from where it stopped.

    Args:
        url: http or https. Without a hash, a server that tells no length can cut the file short unnoticed.
        sha256: 64 hex digits that the file must have; "": unknown.
        sha256_head: the first digits of them, where only those are known.

    Returns:
        A file that other processes may use too. Not to be changed.

    Raises:
        CheckpointError: it cannot be had, or is not what its hash says.
    """
    digits = sha256 or sha256_head
    return find_download(url, sha256=digits) or _download(url, _cache_path(url), digits)


def find_download(url: str, *, sha256: str = "", sha256_head: str = "") -> Path | None:
    """As `download`, but from the mirror or the cache only; None where neither has it."""
    return _find([_file_name(url)], _cache_path(url), sha256 or sha256_head)


def hub_file(repo_id: str, filename: str, *, revision: str | None = None, sha256: str = "") -> Path:
    """A file of a hub repository as a local file: out of the mirror, the hub's cache, or downloaded.

    Args:
        repo_id: "owner/name".
        filename: its path in the repository.
        revision: branch, tag or commit; None: the main branch. A mirror has one revision only.
        sha256: 64 hex digits that the file must have; "": unknown.

    Raises:
        CheckpointError: it cannot be had, or is not what its hash says.
    """
    address = f"hf://{repo_id}/{filename}"
    found = _find([f"{repo_id}/{filename}", Path(filename).name], _cache_path(address), sha256)
    if found is not None:
        return found
    path = _hub_download(repo_id, filename, revision)
    try:
        _require(path, sha256, address)
    except CheckpointError:
        path.resolve().unlink()  # the cache keeps no bad file; a snapshot is a link to it
        path.unlink(missing_ok=True)
        raise
    return path


def is_repository(name: str) -> bool:
    """Whether a name can be "owner/name" on the hub: it looks so, and is no path of this machine."""
    path = Path(name)
    return bool(REPOSITORY.fullmatch(name)) and path.suffix not in SUFFIXES and not path.parent.exists()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _require(path: Path, digits: str, source: str) -> None:
    """Raises CheckpointError unless the sha256 of the file begins with `digits`."""
    if digits and not (found := sha256_of(path)).startswith(digits.lower()):
        raise _wrong_hash(source, found, digits)


def _wrong_hash(source: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{source}: its sha256 is {found}, expected {expected}: not the published file")


def _file_name(url: str) -> str:
    """Last part of the path of a URL; refuses what is no web address or names no file."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise CheckpointError(f"{url}: not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CheckpointError(f"{url}: only http and https addresses can be downloaded")
    name = unquote(parts.path.rpartition("/")[2])
    if not name.strip(". ") or re.search(r"[/\\\0]", name):
        raise CheckpointError(f"{url}: this address names no file")
    return name


# --- the mirror and the cache


def _find(names: Sequence[str], cached: Path, digits: str) -> Path | None:
    """The first of `names` that the mirror has, else the cached file, else None."""
    mirror = os.environ.get(MIRROR, "")
    if mirror and "://" not in mirror:
        found = _in_folder(Path(mirror).expanduser(), names, digits)
        if found is not None:
            return found
    if _is_cached(cached, digits):
        return cached
    if "://" not in mirror:
        return None
    for name in names:
        try:
            return _download(f"{mirror.rstrip('/')}/{quote(name)}", cached, digits)
        except _AbsentError:
            continue
    return None


def _in_folder(folder: Path, names: Sequence[str], digits: str) -> Path | None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; {MIRROR} must name a folder or a base URL")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is not None:
        _require(path, digits, str(path))
    return path


def _cache_path(address: str) -> Path:
    """One folder for each address, so that equal file names do not meet."""
    from huggingface_hub import constants

    folder = hashlib.sha256(address.encode()).hexdigest()[:16]
    return Path(constants.HF_HUB_CACHE, "uniformerv2", folder, unquote(urlsplit(address).path.rpartition("/")[2]))


def _is_cached(path: Path, digits: str) -> bool:
    """Whether the cache has the file. Its hash was noted when it was put there; one that is not as noted is removed."""
    if not path.is_file():
        return False
    noted = _read_note(path)
    if noted.get("size") == path.stat().st_size and str(noted.get("sha256")).startswith(digits.lower()):
        return True
    if digits and sha256_of(path).startswith(digits.lower()):
        return True
    path.unlink()
    return False


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_note(path: Path) -> dict[str, Any]:
    """What was noted beside a file; {} where nothing can be read."""
    try:
        return dict(json.loads(_note_of(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_note(path: Path, **values: object) -> None:
    _note_of(path).write_text(json.dumps(values), encoding="utf-8")


# --- the web


def _download(url: str, target: Path, digits: str) -> Path:
    """Puts the file into the cache, unless another process does so first."""
    from filelock import FileLock
    from huggingface_hub import constants

    name = _file_name(url)
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{url}: not in the cache, and HF_HUB_OFFLINE forbids to download it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if _is_cached(target, digits):
            return target
        part = target.with_name(target.name + ".part")
        with _progress(name) as report:
            _fetch(url, part, report)
        found = sha256_of(part)
        _note_of(part).unlink(missing_ok=True)
        if not found.startswith(digits.lower()):
            part.unlink()
            raise _wrong_hash(url, found, digits)
        _write_note(target, url=url, sha256=found, size=part.stat().st_size)
        part.replace(target)
    return target


def _fetch(url: str, part: Path, report: Report) -> None:
    """Fills `part`, in as many attempts as it takes."""
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            return _attempt(url, part, report)
        except _DroppedError as error:
            reason = error
    raise CheckpointError(f"{url}: gave up after {ATTEMPTS} attempts, the next call goes on from there: {reason}")


def _attempt(url: str, part: Path, report: Report) -> None:
    """One request for what is missing of `part`."""
    noted = _read_note(part)
    resumable = part.is_file() and noted.get("url") == url and noted.get("validator")
    have = part.stat().st_size if resumable else 0
    # with If-Range, a file that has changed meanwhile comes whole
    headers = {"Range": f"bytes={have}-", "If-Range": noted["validator"]} if have else {}
    try:
        with _open(url, headers) as response:
            start, total = _extent(url, response)
            if start not in (0, have):
                raise _MisfitError(f"asked for byte {have}, the server sent from byte {start}")
            with part.open("ab" if start else "wb") as file:  # emptied before the note names another file
                _write_note(part, url=url, validator=_validator(response))
                _copy(response, file, total, report)
    except DROPPED as error:
        raise _DroppedError(str(error) or type(error).__name__) from error
    except _MisfitError as error:
        _note_of(part).unlink(missing_ok=True)  # the next attempt starts anew
        raise _DroppedError(str(error)) from error


def _open(url: str, headers: dict[str, str]) -> Any:
    """The answer to a request, redirections followed. Its failures as our errors."""
    headers = {**headers, "User-Agent": "uniformerv2", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        code = re.search(rb"<Code>(\w+)</Code>", error.read(4096))  # what object stores say, such as NoSuchBucket
        reason = code[1].decode() if code else " ".join(str(error.reason).split())
        answer = f"{url}: answers {error.code} {reason}"
        if error.code == 416:
            raise _MisfitError(answer) from error
        if error.code in PASSING:
            raise _DroppedError(answer) from error
        raise (_AbsentError if error.code in ABSENT else CheckpointError)(answer) from error
    except (urllib.error.URLError, http.client.InvalidURL) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, (ConnectionResetError, BrokenPipeError, TimeoutError)):
            raise _DroppedError(str(cause)) from error
        raise CheckpointError(f"{url}: cannot be reached: {cause}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, but never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type, scheme) == ("https", "http"):
            raise CheckpointError(f"{req.full_url}: redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _extent(url: str, response: Any) -> tuple[int, int | None]:
    """Where in the file an answer begins, and how long the whole file is (None: not told), in bytes."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise CheckpointError(f"{url}: answers {response.status} with a web page, not with a file")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise CheckpointError(f"{url}: answers in the encoding {headers['Content-Encoding']}, which was not asked for")
    if response.status == 206:
        extent = re.match(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if extent is None:
            raise _MisfitError("part of the file came without a Content-Range")
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    length = headers.get("Content-Length", "")
    if length == "0":
        raise CheckpointError(f"{url}: answers {response.status} with an empty file")
    return 0, int(length) if length.isdigit() else None


def _validator(response: Any) -> str:
    """What tells this very file from a later one at the same address; "" where the server does not say."""
    tag = response.headers.get("ETag", "")
    weak = tag.startswith("W/")  # two files of one weak tag mean the same, but may differ in their bytes
    return response.headers.get("Last-Modified", "") if weak or not tag else tag


def _copy(response: Any, file: IO[bytes], total: int | None, report: Report) -> None:
    report(file.tell(), total)
    while chunk := response.read1(CHUNK):
        file.write(chunk)
        report(file.tell(), total)
    if total is not None and file.tell() != total:
        raise _DroppedError(f"the connection ended at byte {file.tell()} of {total}")


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """A bar on stderr while a file comes in; nothing where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console.print(f"downloading {name}", highlight=False, markup=False)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _hub_download(repo_id: str, filename: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, utils

    where = f"hf://{repo_id}/{filename}"
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except utils.HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no name of a hub repository, such as owner/name") from error
    except utils.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{where}: not in the cache, and the hub cannot be reached or is switched off") from error
    except utils.RepositoryNotFoundError as error:
        raise CheckpointError(f"{where}: the hub has no repository {repo_id}, or it is private") from error
    except (utils.EntryNotFoundError, utils.RevisionNotFoundError) as error:
        raise CheckpointError(f"{where}: the hub has no such file{at} in {repo_id}") from error
    except (utils.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{where}: cannot be downloaded: {str(error).strip().partition(chr(10))[0]}") from error
