"""Results that survive the process that found them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from uniformerv2.errors import AnnotationError


class Journal:
    """A file of JSON objects, one a line, that a run adds to as it goes and the next run goes on from.

    A process that is killed loses at most the object it was writing: a line that is cut in half, or holds anything but
    an object, is no record.

    Args:
        path: continued where it exists.

    Raises:
        AnnotationError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)  # every record reaches the system by itself, and in one piece
        except OSError as error:
            raise AnnotationError(f"{path}: cannot be written: {error.strerror}") from None
        self._end_half_line()

    def records(self) -> Iterator[dict[str, Any]]:
        """What was added so far, by this run and by those before it."""
        with self.path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record

    def add(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end_half_line(self) -> None:
        with self.path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                self._file.write(b"\n")
