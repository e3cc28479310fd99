"""What `stream` and `timeline` do with a localiser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniformerv2.cli.options import refuse_options, values
from uniformerv2.cli.output import note, note_checkpoint, print_event, print_json, print_line
from uniformerv2.errors import AnnotationError, VideoError

if TYPE_CHECKING:
    from uniformerv2.spans.span import Span, Spans
    from uniformerv2.stream_spans import SpanEvent

EVENT_OPTIONS = ("delay_seconds", "threshold")  # of `stream`, for localisers alone
TIMELINE_OPTIONS = ("threshold", "truth")  # of `timeline`
CURVE_OPTIONS = (
    *("labels", "weights", "top_k", "head", "reduction"),
    *("window_seconds", "stride_seconds", "precision", "backend"),
)
CLASS_OPTIONS = ("labels", "weights", "top_k", "head", "reduction", "window_frames", "stride_frames")


def stream_spans(command: Any) -> int:
    """Tell when spans start and end; returns the exit status.

    Args:
        command: the options of `stream`.
    """
    from uniformerv2.stream_spans import StreamLocaliser

    refuse_options(command, *CLASS_OPTIONS, why="is not for the checkpoints of localisers, and this is one")
    note_checkpoint(command.checkpoint)
    options = values(command, *CLASS_OPTIONS, "checkpoint", "source", "threshold", "limit", "as_json")
    localiser = StreamLocaliser(command.checkpoint, **options)
    for line in localiser.report:
        note(line)
    show_event: Any = (lambda event: print_json(event.kind, event)) if command.as_json else print_event
    for event in localiser.run(command.source, threshold=command.threshold, on_event=show_event):
        if command.as_json:
            print_json(event.kind, event)
        else:
            print_line(_line(event))
    return 0


def draw_spans(command: Any) -> list[str]:
    """Write a table and a picture of the spans of each video; returns why videos could not be read.

    Args:
        command: the options of `timeline`.
    """
    from uniformerv2.localise import Localiser
    from uniformerv2.pages.timeline_picture import write_spans_picture
    from uniformerv2.spans.files import read_spans, write_spans
    from uniformerv2.timeline import timeline_files
    from uniformerv2.video.reader import VideoReader

    refuse_options(command, *CURVE_OPTIONS, why="is not for the checkpoints of localisers, and this is one")
    files = timeline_files(command.output, command.videos)
    truth = None if command.truth is None else read_spans(command.truth)
    note_checkpoint(command.checkpoint)
    localiser = Localiser(command.checkpoint, device=command.device)
    reasons = []
    for video, (table, picture) in zip(command.videos, files, strict=True):
        try:
            spans = localiser.localise(video, threshold=command.threshold, workers=0, progress=True)
            with VideoReader(video) as reader:
                duration = reader.duration
        except VideoError as error:
            reasons.append(str(error))
            continue
        command.output.mkdir(parents=True, exist_ok=True)
        write_spans({str(video): spans}, table)
        write_spans_picture(picture, str(video), duration, spans, None if truth is None else _true_spans(truth, video))
        for span in spans if command.as_json else ():
            print(json.dumps({"video": str(video), **asdict(span)}))
        if not command.as_json:
            print_line(f"{video}: {len(spans)} spans, written to {table} and {picture}")
    return reasons


def _true_spans(truth: Spans, video: Path) -> Sequence[Span]:
    """Those of a video by its path, else its name, else its name without the suffix.

    Raises:
        AnnotationError: several have the name.
    """
    for same in (str, lambda name: Path(name).name, lambda name: Path(name).stem):
        names = [name for name in truth if same(name) == same(str(video))]
        if len(names) == 1:
            return truth[names[0]]
        if names:
            raise AnnotationError(
                f"{video}: {len(names)} videos with true spans have this name: {', '.join(names[:3])}"
            )
    return ()


def _line(event: SpanEvent) -> str:
    reach = f"from {event.start:.1f} s" + ("" if event.end is None else f" to {event.end:.1f} s")
    counts = "".join(f", {count} {name}" for name in ("dropped", "damaged") if (count := getattr(event, name)))
    return f"{event.time:7.1f} s  {event.kind:9}  {event.label}  {reach}  ({event.score:.0%}{counts})"
