"""Text that people typed: as it is compared, what it may have meant, and as it is shown; JSON, and a digest of it."""

from __future__ import annotations

import difflib
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any


def normalised(text: str) -> str:
    """In composed form (Unicode's NFC, which file names of macOS do not have) and without outer white space."""
    return unicodedata.normalize("NFC", text).strip()


def words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name as they are compared: ("turn", "left", "2") of turn_left2 and of TurnLeft-2."""
    runs = ("".join(run) for kind, run in groupby(normalised(name), _kind) if kind)
    return tuple(word.casefold() for run in runs for word in _humps(run))


def _kind(character: str) -> str:
    """Marks, such as the vowels of Devanagari, are parts of words; what is empty stands between words."""
    return {"L": "letters", "M": "letters", "N": "digits"}.get(unicodedata.category(character)[0], "")


def _humps(run: str) -> Iterator[str]:
    """A, Turn and Left of ATurnLeft; LEFT stays one word."""
    inside = range(1, len(run))
    starts = [
        at for at in inside if run[at].isupper() and not (run[at - 1].isupper() and not run[at + 1 : at + 2].islower())
    ]
    return (run[start:end] for start, end in pairwise([0, *starts, len(run)]))


def nearest(name: str, known: Iterable[str]) -> str:
    """What a name that is none may have meant, as the end of an error."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def utf8(text: str) -> str:
    """As a file in UTF-8 can hold it: bytes of a file name that are not UTF-8 become escapes such as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: object) -> str:
    """On one line, and without codes that a terminal obeys: control characters become escapes such as \\n."""
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character for character in str(text)
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def parse_json(text: str | bytes, *, repeats: bool = True) -> Any:
    """What a text says in JSON. Raises ValueError if it is none, or is nested too deeply to be read.

    Args:
        repeats: whether an object may have a key twice, of which the last counts; else ValueError.
    """
    try:
        return json.loads(text) if repeats else json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"{twice!r} stands twice in one object; join both, or delete one")
    return found


def short_json(value: object, *, longest: int = 200) -> str:
    """A value of JSON as a message shows it: its first characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= longest else f"{text[:longest]}..."


def short_digest(value: object) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
