"""What every import shares: its options, its result, and the rows that it leaves out, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from uniformerv2.atomic import whole_file
from uniformerv2.data.tables import check_target, csv_writer, place
from uniformerv2.errors import AnnotationError

if TYPE_CHECKING:
    from uniformerv2.weights.labels import ClassOrder

NO_FILE = "no such file"
SEVERAL_FILES = "several files of that name"
NO_LABEL = "no label"
OTHER_SPLIT = "of another split"
REPEATED = "repeats another row"
INVALID = "invalid"
CONTRADICTORY = "contradicts another row"
# of spans
PAST_END = "past the end of the video"
NO_SUCH_FRAMES = "frames that the video lacks"
NO_LENGTH = "no length"
REVERSED = "ends before it starts"
UNREADABLE = "video cannot be read"
OTHER_TIER = "of another tier"
OTHER_VERSION = "file of another version"
UNKNOWN_FORMAT = "file of no known format"
INCOMPLETE = frozenset(
    {NO_FILE, SEVERAL_FILES, NO_LABEL, INVALID, CONTRADICTORY}
    | {PAST_END, NO_SUCH_FRAMES, NO_LENGTH, REVERSED, UNREADABLE, OTHER_VERSION}
)  # what `strict` forbids


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import; `import_dataset` says what each means."""

    split: str | None = None
    fold: int | None = None
    order: ClassOrder = "official"
    official_lists: bool = False
    untrimmed: bool = False
    span_format: str | None = None
    tier: str | None = None
    frame_rate: float | None = None
    strict: bool = False
    lenient: bool = False


@dataclass
class ImportResult:
    """How many rows were written, and how many were left out."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # rows by cause
    example: dict[str, str] = field(default_factory=dict)  # cause -> where the first one stands, and what it is
    respelled: dict[str, str] = field(default_factory=dict)  # label as published -> as written

    @property
    def rows(self) -> int:
        return self.written + self.left_out.total()


class LeftOut(Exception):
    """A row that is left out of the manifest: the cause and a detail."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


@dataclass
class ImportJob:
    """One pass over the rows of all files."""

    options: ImportOptions
    report: Callable[[Sequence[object]], object]
    result: ImportResult = field(default_factory=ImportResult)

    def leave_out(self, left: LeftOut, file: Path, line: int, name: str, label: str) -> None:
        """Count a row that is left out. Raises AnnotationError where the options forbid it."""
        where, detail = place(file, line) if line else str(file), left.detail or name
        if left.cause in (INVALID, CONTRADICTORY) and not self.options.lenient:
            raise AnnotationError(f"{where}: {detail}")
        if self.options.strict and left.cause in INCOMPLETE:
            raise AnnotationError(f"{where}: {left.cause}: {detail}; without --strict such rows are counted")
        self.result.left_out[left.cause] += 1
        self.result.example.setdefault(left.cause, f"{where}: {detail}")
        self.report((left.cause, file, line, name, label, left.detail))

    def at_least_one(self, rows: Iterator[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
        """The rows. Raises AnnotationError if all were left out."""
        first = next(rows, None)
        if first is None:
            causes = ", ".join(f"{count} {cause}" for cause, count in self.result.left_out.most_common())
            examples = "; ".join(self.result.example.values())[:300]
            raise AnnotationError(f"no row is left to write: {causes or 'there are none'} ({examples})")
        yield first
        yield from rows


@contextmanager
def table_of_left_out(path: Path | None) -> Iterator[Callable[[Sequence[object]], object]]:
    """A function that takes the cells of a row."""
    if path is None:
        yield lambda cells: None
        return
    check_target(path)
    with (
        whole_file(path) as partial_file,
        partial_file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        write = csv_writer(file)
        write(("cause", "file", "line", "name", "label", "detail"))
        yield write
