"""`uniformerv2 predict`, `timeline` and `stream`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from uniformerv2.cli.options import (
    Classifying,
    Output,
    Precision,
    StrideFrames,
    StrideSeconds,
    Videos,
    WindowFrames,
    WindowSeconds,
)
from uniformerv2.cli.output import FAILED, note, note_checkpoint, print_error, print_line
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.text import printable
from uniformerv2.video.views import Views

if TYPE_CHECKING:
    from uniformerv2.predict import Predictor
    from uniformerv2.stream import StreamEvent, StreamPrediction


@dataclass(frozen=True, kw_only=True)
class Predict(Classifying):
    """Rank the classes for videos."""

    videos: Videos
    views: Views = Views()
    batch_size: int | None = None
    """Clips that the model computes at once, of several videos together; None: 1 on a CPU, 8 on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor. int8: by OpenVINO, needs --calibration-videos."""
    backend: Literal["torch", "compile", "openvino", "onnxruntime"] = "torch"
    """What runs the model (docs/inference.md)."""
    calibration_videos: Annotated[tuple[Path, ...], arg(metavar="VIDEO...")] = ()
    """Some dozen videos like those to come: for int8, and to compare any precision with the plain model."""

    def run(self) -> int:
        _check_videos(self.videos)
        from uniformerv2.data.annotations import Unreadable
        from uniformerv2.predict import Predictor

        note_checkpoint(self.checkpoint)
        predictor = Predictor(self.model(), **self.predictor_options("videos"))
        _print_notes(predictor)
        reasons = []
        for result in predictor.predict_all(self.videos, top_k=self.top_k):
            if isinstance(result, Unreadable):
                reasons.append(result.reason)
            elif self.as_json:
                print(json.dumps(asdict(result)), flush=True)
            else:
                print_line(result.video)
                for label, score in zip(result.labels, result.scores, strict=True):
                    print_line(f"  {score:6.1%}  {label}")
        return _status(reasons, self.videos)


@dataclass(frozen=True, kw_only=True)
class Timeline(Classifying):
    """Classify windows that slide over videos: NAME.csv, a table, and NAME.svg, a picture, for each."""

    videos: Videos
    output: Output
    """The folder to write to."""
    window_seconds: WindowSeconds = 2.0
    stride_seconds: StrideSeconds = None
    precision: Precision = "fp32"

    def run(self) -> int:
        _check_videos(self.videos)
        from uniformerv2.inference.sharing import sharing_report
        from uniformerv2.pages.timeline_picture import write_picture
        from uniformerv2.predict import Predictor
        from uniformerv2.timeline import check_top_k, timeline_files

        files = timeline_files(self.output, self.videos)
        check_top_k(self.top_k)
        windows = {"window_seconds": self.window_seconds, "stride_seconds": self.stride_seconds}
        note_checkpoint(self.checkpoint)
        predictor = Predictor(self.model(), **self.predictor_options("videos", "output", *windows))
        _print_notes(predictor)
        note(sharing_report(predictor.model.config))
        reasons = []
        for video, (table, picture) in zip(self.videos, files, strict=True):
            try:
                timeline = predictor.timeline(video, **windows, progress=True)
            except VideoError as error:
                reasons.append(str(error))
                continue
            self.output.mkdir(parents=True, exist_ok=True)
            timeline.write_table(table, top_k=self.top_k)
            write_picture(picture, timeline)
            if self.as_json:
                for moment in timeline.moments(top_k=self.top_k):
                    print(json.dumps({"video": str(video), **moment._asdict()}))
            else:
                print_line(f"{video}: {len(timeline.start)} windows, written to {table} and {picture}")
        return _status(reasons, self.videos)


@dataclass(frozen=True, kw_only=True)
class Stream(Classifying):
    """Classify what a camera or another live source shows, as long as it runs."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """camera, camera:1, an address (rtsp://, http://, ...), or a file, which plays at its own pace."""
    window_frames: WindowFrames = None
    stride_frames: StrideFrames = 1
    frames_per_second: float | None = None
    """Frames that are taken; None: all. A window spans window-frames / frames-per-second seconds."""
    timeout_seconds: float = 10.0
    """After so long without a frame the source has failed."""
    precision: Precision = "fp32"

    def run(self) -> int:
        from uniformerv2.stream import StreamPredictor

        note_checkpoint(self.checkpoint)
        predictor = StreamPredictor(self.model(), **self.predictor_options("source"))
        for line in (predictor.model.label_note, *predictor.report):
            note(line)
        with _display(self.as_json) as (show, show_event):
            for prediction in predictor.run(self.source, top_k=self.top_k, on_event=show_event):
                show(prediction)
        return 0


def _check_videos(videos: Sequence[Path]) -> None:
    if not videos:
        raise RecipeError("no videos given")


def _print_notes(predictor: Predictor) -> None:
    for line in (predictor.model.label_note, predictor.optimized.note, predictor.optimized.comparison):
        note(str(line or ""))


def _status(reasons: Sequence[str], videos: Sequence[Path]) -> int:
    """Print why videos could not be read; returns the exit status."""
    for reason in reasons:
        print_error(reason)
    if reasons and len(videos) > 1:
        print_error(f"{len(reasons)} of {len(videos)} videos could not be read")
    return FAILED if reasons else 0


@contextmanager
def _display(as_json: bool) -> Iterator[tuple[Callable[[Any], object], Callable[[StreamEvent], object]]]:
    """What shows predictions and events: lines of JSON, a line that changes on a terminal, or a line for each."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    if as_json:
        yield partial(_print_json, "prediction"), lambda event: _print_json(event.kind, event)
    elif not console.is_terminal:
        yield lambda prediction: print_line(_line(prediction)), _print_event
    else:
        with Live(console=console, auto_refresh=False) as live:

            def show(prediction: StreamPrediction) -> None:
                live.update(Text(printable(_line(prediction)), no_wrap=True, overflow="ellipsis"), refresh=True)

            yield show, _print_event


def _print_json(kind: str, item: StreamPrediction | StreamEvent) -> None:
    print(json.dumps({**asdict(item), "kind": kind}), flush=True)


def _print_event(event: StreamEvent) -> None:
    print(event.message if event.kind == "end" else f"note: {event.message}", file=sys.stderr)


def _line(prediction: StreamPrediction) -> str:
    ranked = zip(prediction.labels, prediction.scores, strict=True)
    classes = "  ".join(f"{label} {score:.0%}" for label, score in ranked)
    losses = {"dropped": prediction.dropped, "damaged": prediction.damaged}
    counts = "".join(f", {count} {name}" for name, count in losses.items() if count)
    return f"{prediction.end:7.1f} s  {classes}  ({1000 * prediction.latency:.0f} ms{counts})"
