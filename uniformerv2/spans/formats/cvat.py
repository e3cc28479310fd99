"""CVAT for video 1.1: tracks of shapes over frames; where a track is not `outside`, it is a span."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.label_file import FormatError, FrameSource, LabelFile, SpanRow
from uniformerv2.spans.formats.xml import Element
from uniformerv2.spans.span import Spans

NO_SHAPES = "track without shapes"
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SHAPES = {"box", "polygon", "polyline", "points", "cuboid", "skeleton", "mask", "ellipse"}


def is_cvat(file: LabelFile) -> bool:
    return file.xml is not None and file.xml.tag == "annotations"


def read_cvat(file: LabelFile) -> Iterator[SpanRow]:
    """Frames are numbered as in the video, also where the task has a part of them."""
    root = file.xml
    assert root is not None
    version = root.text_of("version")
    if version != "1.1":
        raise FormatError(f"{file.path}, line {root.line}: version {version!r} of CVAT's XML; expected 1.1")
    if image := next(root.all("image"), None):
        raise FormatError(
            f"{file.path}, line {image.line}: this is CVAT for images; export the task as 'CVAT for video 1.1'"
        )
    videos = _videos(root)
    for track in root.all("track"):
        task = track.attributes.get("task_id", "")
        names = (*videos.get(task, next(iter(videos.values()), ())), file.path.stem)
        row = SpanRow(track.line, names, track.attributes.get("label", ""))
        shapes = [shape for shape in track.children if shape.tag in _SHAPES]
        numbers = [shape.attributes.get("frame", "") for shape in shapes]
        if not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
            yield row._replace(wrong="found a shape whose frame is no number")
            continue
        if not shapes:
            yield row._replace(skip=NO_SHAPES)
        for line, frames in _visible(shapes):
            yield row._replace(line=line, frames=frames)


def _videos(root: Element) -> dict[str, tuple[str, ...]]:
    """The names of the video of each task, by the task's number."""
    tasks = [
        task
        for path in (("task",), ("job", "task"), ("project", "tasks", "task"), ("job",))
        for task in root.all("meta", *path)
    ]
    found = {}
    for task in tasks:
        names = (task.text_of("source"), root.text_of("meta", "source"), task.text_of("name"))
        found[task.text_of("id")] = tuple(dict.fromkeys(filter(None, names)))
    return found


def _visible(shapes: list[Element]) -> Iterator[tuple[int, tuple[int, int]]]:
    """The line and the frames of each stretch in which a track is not outside."""
    first: Element | None = None
    last = 0
    for shape in sorted(shapes, key=_frame):
        if shape.attributes.get("outside") == "1":
            if first is not None:
                yield first.line, (_frame(first), _frame(shape))
            first = None
            continue
        first, last = first or shape, _frame(shape)
    if first is not None:
        yield first.line, (_frame(first), last + 1)


def _frame(shape: Element) -> int:
    return int(shape.attributes["frame"])


def write_cvat(spans: Spans, frames: FrameSource) -> str:
    """A track for each span of one video, as a box around the whole picture. Scores are not kept."""
    ((video, of_video),) = spans.items()
    film = frames(video)
    labels = "".join(f"<label><name>{_text(label)}</name></label>" for label in sorted({s.label for s in of_video}))
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "<version>1.1</version>",
        f"<meta><task><name>{_text(video)}</name><size>{len(film)}</size><mode>interpolation</mode>"
        f"<start_frame>0</start_frame><stop_frame>{len(film) - 1}</stop_frame><labels>{labels}</labels>"
        f"<original_size><width>{film.width}</width><height>{film.height}</height></original_size>"
        f"<source>{_text(video)}</source></task></meta>",
    ]
    for number, span in enumerate(of_video):
        first, past = film.span(span.start, span.end)
        # a shape behind the last frame is refused; there the span ends with its last visible box
        ends = [(past, 1)] if past < len(film) else [(past - 1, 0)] if past - 1 > first else []
        lines.append(f'<track id="{number}" label={_attribute(span.label)} source="auto">')
        lines += [
            f'<box frame="{frame}" keyframe="1" outside="{outside}" occluded="0" xtl="0.00" ytl="0.00" '
            f'xbr="{film.width}.00" ybr="{film.height}.00" z_order="0"/>'
            for frame, outside in [(first, 0), *ends]
        ]
        lines.append("</track>")
    return "\n".join([*lines, "</annotations>", ""])


def _text(text: str) -> str:
    return escape(_checked(text), {"\r": "&#13;"})


def _attribute(text: str) -> str:
    return quoteattr(_checked(text), {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def _checked(text: str) -> str:
    if found := _NOT_IN_XML.search(text):
        raise AnnotationError(f"{text!r}: XML cannot hold the character {found[0]!r}; rename it")
    return text
