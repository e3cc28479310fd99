"""Text that people typed: as it is compared, and as it is shown."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """In composed form (Unicode's NFC, which file names of macOS do not have) and without outer white space."""
    return unicodedata.normalize("NFC", text).strip()


def printable(text: object) -> str:
    """On one line, and without codes that a terminal obeys: control characters become escapes such as \\n."""
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character for character in str(text)
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
