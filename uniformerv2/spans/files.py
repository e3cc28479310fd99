"""Spans read from files and written to them, in any of the formats of `formats/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from uniformerv2.atomic import whole_file, whole_folder
from uniformerv2.data.annotations import Split, of_split
from uniformerv2.data.manifest import manifest_rows
from uniformerv2.data.tables import check_target, place
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.label_file import FrameSource, SpanRow, open_label_file
from uniformerv2.spans.formats.table import WRITTEN, SpanFormat, format_of
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.spans.span import Span, Spans

# --- reading


def read_rows(file: Path, format: str | None = None) -> Iterator[SpanRow]:
    """What a file says, row by row, before videos are looked for.

    Args:
        file: of labels.
        format: its format; None: told by its content.

    Raises:
        FormatError: another format, or a version of it that is not known.
        AnnotationError: a damaged file; names the line.
    """
    opened = open_label_file(file)
    return format_of(opened, format).read(opened)


def read_spans(file: str | Path, format: str | None = None, *, frames: FrameSource = FrameTimes.of) -> Spans:
    """The spans of a file as they are written in it, also reversed ones; what the format marks as none is left out.

    Args:
        file: of labels.
        format: its format; None: told by its content.
        frames: the frames of a video, by the name that it has in the file, where the format counts in frames. By
            default the name is the path of the video.

    Returns:
        By the name of the video in the file, in the order of the file.

    Raises:
        AnnotationError: a row that is invalid, or a frame that the video does not have; names the line.
        VideoError: a video that cannot be read.
    """
    found: dict[str, list[Span]] = {}
    for row in read_rows(Path(file), format=format):
        if row.wrong:
            raise AnnotationError(f"{place(file, row.line)}: {row.wrong}")
        if not row.skip:
            video = row.names[0]
            try:
                start, end = row.times(partial(frames, video))
            except IndexError as frame:
                raise AnnotationError(f"{place(file, row.line)}: {video} has no frame {frame}") from None
            found.setdefault(video, []).append(Span(start, end, row.label, row.score))
    return {**found}


# --- writing


def write_spans(
    spans: Spans, path: str | Path, format: str | None = None, *, frames: FrameSource = FrameTimes.of
) -> list[Path]:
    """Write spans so that `read_spans` reads the same, whole or not at all.

    Times are kept exactly in ActivityNet's JSON and in CSV, to a millisecond in SRT and VTT, to a frame of the video in
    CVAT's XML and Label Studio's JSON, and to one at the video's average rate in EDL. Scores are kept in ActivityNet's
    and Label Studio's JSON and in CSV.

    Args:
        spans: by the name or path of the video, which formats that name videos write as it is.
        path: the file; or, for formats of which a file holds one video, a new or an empty folder for a file each.
        format: one of `WRITTEN`; None: by the suffix (.json is ActivityNet's form, .xml CVAT's).
        frames: the frames of a video, for formats that count in frames. By default the name is the path of the video.

    Returns:
        The files.

    Raises:
        AnnotationError: a format that is not written, that cannot hold a label or several videos, or spans that no
            format can hold; then nothing is written.
        VideoError: a video that cannot be read.
    """
    path = Path(path)
    name = format_name(path, format)
    chosen = WRITTEN[name]
    for video, of_video in spans.items():
        _check(video, of_video)
    check_target(path)
    if not chosen.one_video or (len(spans) == 1 and path.suffix and not path.is_dir()):
        text = _text(chosen, spans, frames, path)
        with whole_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
        return [path]
    if path.suffix and not path.is_dir():
        raise AnnotationError(
            f"{path}: a file of {name} holds the spans of one video, and these are of {len(spans)}; "
            f"give a new folder and the format {name}"
        )
    files = _file_names(spans, chosen.suffix)
    content = {file: _text(chosen, {video: spans[video]}, frames, path / file) for file, video in files.items()}
    with whole_folder(path) as folder:
        for file, text in content.items():
            (folder / file).write_text(text, encoding="utf-8", newline="")
    return [path / file for file in files]


def write_manifest_spans(
    manifest: Path, path: str | Path, format: str | None = None, *, root: Path, split: Split = "all"
) -> tuple[int, list[Path]]:
    """Write the rows of a manifest as spans; rows without times are the whole video.

    Videos go by their paths in the manifest. See `write_spans`.

    Args:
        root: what the paths of the manifest are relative to.
        split: which rows.

    Returns:
        The number of spans, and the files.
    """
    found: dict[str, list[Span]] = {}
    frames = lru_cache(8)(lambda video: FrameTimes.of(root / video))
    for row in of_split([row for _, row in manifest_rows(manifest, Path())], split):
        video = row.path.as_posix()
        end = frames(video).duration if row.end is None else row.end
        found.setdefault(video, []).append(Span(row.start or 0.0, end, row.label))
    return sum(map(len, found.values())), write_spans({**found}, path, format, frames=frames)


def format_name(path: Path, format: str | None = None) -> str:
    """The format that spans are written to a path in; see `write_spans`. Raises AnnotationError for one that is not."""
    by_suffix = {of.suffix: name for name, of in reversed(WRITTEN.items())}
    name = format or by_suffix.get(path.suffix.lower(), "")
    if name not in WRITTEN:
        found = f"format {format!r}" if format else f"suffix {path.suffix!r}"
        raise AnnotationError(
            f"{path}: no spans are written in the {found}; it must be one of {', '.join(WRITTEN)} "
            f"(by suffix {', '.join(by_suffix)})"
        )
    return name


def _check(video: str, spans: Sequence[Span]) -> None:
    for span in spans:
        if not 0 <= span.start <= span.end < float("inf") or not span.label.strip():
            raise AnnotationError(f"{video}: {span} cannot be written; it needs a label and 0 <= start <= end")


def _text(chosen: SpanFormat, spans: Spans, frames: FrameSource, path: Path) -> str:
    assert chosen.write
    text = chosen.write(spans, frames)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = ascii(error.object[max(0, error.start - 100) : error.start + 100])
        raise AnnotationError(f"{path}: {name} cannot be written in UTF-8; rename it") from None
    return text


def _file_names(spans: Spans, suffix: str) -> dict[str, str]:
    """A file name for each video: its own, with another suffix."""
    files: dict[str, str] = {}
    for video in spans:
        file = PurePosixPath(video).stem + suffix
        if file in files:
            raise AnnotationError(f"{video} and {files[file]} would both be written to {file}; rename one of them")
        files[file] = video
    return files
