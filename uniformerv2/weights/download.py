"""Files from the web in the hub's cache: whole or absent, checked against their hash, shared by processes.

The environment variable UNIFORMERV2_HUB names a mirror that is tried first: a folder, whose files are used in place, or
a base URL. It is searched by file name; for files of a hub repository by `owner/name/file`, then by name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from uniformerv2.errors import CheckpointError
from uniformerv2.progress import bar
from uniformerv2.weights.files import SUFFIXES

MIRROR = "UNIFORMERV2_HUB"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TIMEOUT = 20.0  # seconds without an answer or a byte
CONNECT_TIMEOUT = 4.0  # seconds
CHUNK = 1 << 20  # bytes


class FileNotOnServerError(CheckpointError):
    """The server answers, but has no such file."""


class UnreachableError(CheckpointError):
    """The server does not answer, or may not be asked."""


def download(url: str, *, sha256: str = "") -> Path:
    """A file of the web as a local file: from the mirror, the cache, or downloaded.

    A download that breaks off is continued by the next call where a hash can tell that the parts fit.

    Args:
        url: http or https.
        sha256: the hash that the file must have, in hex, or its first digits; "": unknown.

    Returns:
        A file that other processes may use too. Not to be changed.

    Raises:
        CheckpointError: it cannot be downloaded, or has another hash.
    """
    return find_download(url, sha256=sha256) or _download(url, _cache_path(url), sha256)


def find_download(url: str, *, sha256: str = "") -> Path | None:
    """As `download`, but from the mirror or the cache only; None where neither has it."""
    return _find([_file_name(url)], _cache_path(url), sha256)


def hub_file(repo_id: str, filename: str, *, sha256: str = "", **options: Any) -> Path:
    """A file of a hub repository as a local file: from the mirror, the hub's cache, or downloaded.

    Args:
        repo_id: "owner/name".
        filename: its path in the repository.
        sha256: as for `download`.
        options: of `huggingface_hub.hf_hub_download`, such as `revision`. A mirror has one revision only.

    Raises:
        CheckpointError: as for `download`.
    """
    address = f"hf://{repo_id}/{filename}"
    names = [f"{repo_id}/{filename}", Path(filename).name]
    if found := _find(names, _cache_path(address), sha256):
        return found
    path = _hub_download(repo_id, filename, options)
    try:
        _check_hash(path, sha256, address)
    except CheckpointError:
        path.resolve().unlink()  # the cache keeps no bad file; a snapshot is a link to it
        path.unlink(missing_ok=True)
        raise
    return path


def is_repository(name: str) -> bool:
    """Whether a name can be "owner/name" on the hub: it looks so, and is no path of this machine."""
    path = Path(name)
    return bool(REPOSITORY.fullmatch(name)) and path.suffix not in SUFFIXES and not path.parent.exists()


def _check_hash(path: Path, sha256: str, source: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while sha256 and (chunk := file.read(CHUNK)):
            digest.update(chunk)
    if sha256 and not digest.hexdigest().startswith(sha256.lower()):
        raise CheckpointError(
            f"{source}: its sha256 is {digest.hexdigest()}, expected {sha256}: not the published file; try again, or "
            f"put a good copy into a folder and name the folder in {MIRROR}"
        )


def _file_name(url: str) -> str:
    """Last part of the path of a URL. Raises CheckpointError for what is no web address or names no file."""
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


def _find(names: Sequence[str], cached: Path, sha256: str) -> Path | None:
    """The first of `names` in the mirror, else the cached file, else None."""
    mirror = os.environ.get(MIRROR, "")
    if mirror and "://" not in mirror:
        folder = Path(mirror).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; {MIRROR} must name a folder or a base URL")
        for path in (folder / name for name in names):
            if path.is_file():
                _check_hash(path, sha256, str(path))
                return path
    if cached.is_file():
        return cached
    for name in names if "://" in mirror else ():
        try:
            return _download(f"{mirror.rstrip('/')}/{quote(name)}", cached, sha256)
        except FileNotOnServerError:
            continue
    return None


def _cache_path(address: str) -> Path:
    """One folder for each address, so that files of equal names do not meet."""
    from huggingface_hub import constants

    folder = hashlib.sha256(address.encode()).hexdigest()[:16]
    return Path(constants.HF_HUB_CACHE, "uniformerv2", folder, unquote(urlsplit(address).path.rpartition("/")[2]))


def _download(url: str, target: Path, sha256: str) -> Path:
    """Put the file into the cache, unless another process does so first."""
    from filelock import FileLock
    from huggingface_hub import constants

    _file_name(url)
    if constants.HF_HUB_OFFLINE:
        raise UnreachableError(f"{url}: not in the cache, and HF_HUB_OFFLINE forbids to download it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                part = target.with_name(f"{target.name}.part")
                if not sha256:  # nothing would tell whether its parts fit
                    part.unlink(missing_ok=True)
                _fetch(url, part)
                try:
                    _check_hash(part, sha256, url)
                except CheckpointError:
                    part.unlink()
                    raise
                part.replace(target)
    except OSError as error:  # of the disk
        raise CheckpointError(f"{url}: cannot be written to {target.parent}: {error.strerror or error}") from error
    return target


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is missing of it."""
    size = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "uniformerv2", **({"Range": f"bytes={size}-"} if size else {})}
    request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # it is whole already, or longer than the file: its hash decides
            return
        kind = FileNotOnServerError if error.code in (403, 404, 410) else CheckpointError
        raise kind(f"{url}: the server answers {error.code} {' '.join(error.reason.split())}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(
            f"{url}: cannot be reached ({reason}); check the network, or copy the file into a folder and name it in "
            f"{MIRROR}"
        ) from error
    with response, part.open("ab" if response.status == 206 else "wb") as file, bar(part.stem, response.length) as step:
        try:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                step(len(chunk))
            if response.length:
                raise HTTPException(f"{response.length} bytes are missing")
        except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
            raise CheckpointError(f"{url}: the download broke off ({reason}); try again") from error


def _hub_download(repo_id: str, filename: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download, utils

    if not options.get("local_files_only") and not _hub_answers():
        options = {**options, "local_files_only": True}
    try:
        with _quiet_retries():
            return Path(hf_hub_download(repo_id, filename, **options))
    except utils.HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no name of a hub repository, such as owner/name") from error
    except utils.LocalEntryNotFoundError as error:
        reason = "not in the cache, and the hub cannot be reached or is switched off"
        raise UnreachableError(
            f"hf://{repo_id}/{filename}: {reason}; check the network, or name a folder with the file in {MIRROR}"
        ) from error
    except utils.RepositoryNotFoundError as error:
        reason = f"the hub has no repository {repo_id}, or it is private"
        raise CheckpointError(f"hf://{repo_id}/{filename}: {reason}") from error
    except (utils.EntryNotFoundError, utils.RevisionNotFoundError) as error:
        at = f" at revision {options['revision']}" if options.get("revision") else ""
        raise FileNotOnServerError(f"hf://{repo_id}/{filename}: the hub has no such file{at}") from error
    except (utils.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"hf://{repo_id}/{filename}: cannot be downloaded: {reason}") from error


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Without a warning of huggingface_hub for each retry: what fails in the end is raised."""
    logger = logging.getLogger("huggingface_hub.utils._http")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _hub_answers() -> bool:
    """Whether the hub's server answers, by way of a proxy too; huggingface_hub alone would retry for half a minute.

    A thread asks, since the time to resolve a name has no limit.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True  # without a try
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_answers(constants.ENDPOINT)), daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return answers == [True]


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        if urllib.request.getproxies().get(parts.scheme):
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=CONNECT_TIMEOUT).close()
        else:
            socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        return error.code not in (502, 503, 504)  # with these, a proxy tells that it reaches no server
    except (OSError, HTTPException):
        return False
    return True
