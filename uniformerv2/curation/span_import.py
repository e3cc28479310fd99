"""Files of labelled spans and a folder of videos -> the rows of a manifest; times are checked against the videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from uniformerv2.curation.import_job import (
    INVALID,
    NO_FILE,
    NO_LABEL,
    NO_LENGTH,
    NO_SUCH_FRAMES,
    OTHER_SPLIT,
    OTHER_TIER,
    OTHER_VERSION,
    PAST_END,
    REPEATED,
    REVERSED,
    SEVERAL_FILES,
    UNKNOWN_FORMAT,
    UNREADABLE,
    ImportJob,
    LeftOut,
)
from uniformerv2.curation.published import split_of, stem_of
from uniformerv2.curation.video_index import VideoIndex
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.progress import LineTimer, say
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import FormatError, SpanRow, UnknownFormat
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.text import normalised

_SUFFIXES = frozenset({".json", ".xml", ".eaf", ".srt", ".vtt", ".csv", ".tsv", ".txt", ".edl"})  # read in folders
_TOLERANCE = 0.5  # seconds past the end that `data check` allows too: owners round times, and so do containers


@dataclass
class SpanImport:
    """One pass over files of spans, in which videos are found and opened, each once.

    Args:
        job: counts what is left out.
        folder: of the videos.
        videos: those of the folder.
    """

    job: ImportJob
    folder: Path
    videos: VideoIndex
    seen: set[tuple[object, ...]] = field(default_factory=set)
    durations: dict[str, float | str] = field(default_factory=dict)  # by path; or why the video cannot be read

    def __post_init__(self) -> None:
        self._frames = lru_cache(8)(self._open)  # files mostly have the spans of a video together

    def accepted(self, annotations: Sequence[Path]) -> Iterator[tuple[object, ...]]:
        """Cells of the rows that are not left out; the first is the path from the folder of videos.

        Raises:
            AnnotationError: nothing to read, or a damaged file.
        """
        timer = LineTimer()
        for file in _files(annotations):
            for row in self._rows(file):
                try:
                    cells = self._cells(row)
                except LeftOut as left:
                    self.job.leave_out(left, file, row.line, row.names[0], row.label)
                else:
                    yield cells
                if timer.passed():
                    say(f"{file}: {len(self.durations)} videos opened so far")

    def _rows(self, file: Path) -> list[SpanRow]:
        """All of a file, so that nothing of a file is taken that turns out to be damaged."""
        try:
            return list(read_rows(file, self.job.options.span_format))
        except FormatError as error:
            cause = UNKNOWN_FORMAT if isinstance(error, UnknownFormat) else OTHER_VERSION
            reason = str(error).removeprefix(str(file)).lstrip(":, ")
            self.job.leave_out(LeftOut(cause, reason), file, 0, file.name, "")
            return []

    def _cells(self, row: SpanRow) -> tuple[object, ...]:
        options = self.job.options
        split = split_of(row.split) or options.split
        if row.skip or (options.split and split != options.split):
            raise LeftOut(row.skip or OTHER_SPLIT)
        if options.tier is not None and row.tier != options.tier:
            raise LeftOut(OTHER_TIER, f"{row.tier!r}")
        if row.wrong:
            raise LeftOut(INVALID, row.wrong)
        label = normalised(row.label)
        if not label:
            raise LeftOut(NO_LABEL)
        path = self._find(row, label, split)
        start, end = self._times(row, path)
        if (path, label, start, end) in self.seen:
            raise LeftOut(REPEATED, f"{path}, {label!r} from {start:g} s to {end:g} s")
        self.seen.add((path, label, start, end))
        return path, label, start, end, split

    def _find(self, row: SpanRow, label: str, split: str | None) -> str:
        for name in map(stem_of, row.names):
            paths = self.videos.find(name, (label, split))
            if len(paths) > 1:
                raise LeftOut(SEVERAL_FILES, " and ".join(paths))
            if paths:
                return paths[0]
        raise LeftOut(NO_FILE, row.names[0])

    def _times(self, row: SpanRow, path: str) -> tuple[float, float]:
        """Seconds that lie in the video."""
        if path not in self.durations:
            self._frames(path)
        duration = self.durations[path]
        if isinstance(duration, str):
            raise LeftOut(UNREADABLE, duration)
        try:
            start, end = row.times(partial(self._frames, path), frame_rate=self.job.options.frame_rate)
        except (IndexError, OverflowError):
            assert row.frames
            frames = len(self._frames(path))
            raise LeftOut(
                NO_SUCH_FRAMES,
                f"frames {row.frames[0]} to {row.frames[1] - 1} of {path}, which has {frames} from 0; if the tool "
                "counted frames at a rate of its own, give --frame-rate",
            ) from None
        found = f"{start:g} s to {end:g} s of {path}"
        if start < 0:
            raise LeftOut(INVALID, f"{found}: the start must be 0 or more seconds")
        if start >= end:
            raise LeftOut(NO_LENGTH if start == end else REVERSED, found)
        if start >= duration or end > duration + _TOLERANCE:
            raise LeftOut(PAST_END, f"{found}, which lasts {duration:g} s")
        return start, end

    def _open(self, path: str) -> FrameTimes:
        """The frames of a video; of one that cannot be read, the reason is kept."""
        video = self.folder / path
        try:
            frames = FrameTimes.of(video)
        except VideoError as error:
            self.durations[path] = str(error)
            raise LeftOut(UNREADABLE, str(error)) from None
        self.durations[path] = frames.duration
        return frames


def _files(given: Sequence[Path]) -> list[Path]:
    """The files, and those of labels in the folders, however deep."""
    files = []
    for path in given:
        inside = path.rglob("*") if path.is_dir() else [path]
        files += sorted(file for file in inside if file is path or _is_labels(file, path))
    if not files:
        names = ", ".join(map(str, given)) or "nothing"
        raise AnnotationError(f"no files of spans among {names}; expected files such as {', '.join(sorted(_SUFFIXES))}")
    return files


def _is_labels(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in _SUFFIXES and not hidden and file.is_file()
