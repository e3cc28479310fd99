"""Results in a file that survive the process that computed them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uniformerv2.errors import AnnotationError
from uniformerv2.text import parse_json


class Journal:
    """A file of JSON objects, one a line, to which a run adds records and from which the next run continues.

    A process that is killed loses at most the record it was writing: a line that is cut short, or holds anything but an
    object, is skipped.

    Args:
        path: continued where it exists.

    Raises:
        AnnotationError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)  # each record is one write to the file
        except OSError as error:
            raise AnnotationError(f"{path}: cannot be written: {error.strerror}") from None
        with path.open("rb") as file:
            if file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """The records so far, of this run and of earlier ones."""
        with self.path.open("rb") as file:
            for line in file:
                try:
                    record = parse_json(line)
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

    def __exit__(self, *exception: object) -> None:
        self.close()
