"""What `stream` does with a localiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uniformerv2.cli.options import refuse_options, values
from uniformerv2.cli.output import note, note_checkpoint, print_event, print_json, print_line

if TYPE_CHECKING:
    from uniformerv2.stream_spans import SpanEvent

EVENT_OPTIONS = ("delay_seconds", "threshold")  # of `stream`, for localisers alone
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


def _line(event: SpanEvent) -> str:
    reach = f"from {event.start:.1f} s" + ("" if event.end is None else f" to {event.end:.1f} s")
    counts = "".join(f", {count} {name}" for name in ("dropped", "damaged") if (count := getattr(event, name)))
    return f"{event.time:7.1f} s  {event.kind:9}  {event.label}  {reach}  ({event.score:.0%}{counts})"
