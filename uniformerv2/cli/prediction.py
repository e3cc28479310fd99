"""`uniformerv2 predict`, `timeline` and `stream`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from uniformerv2.cli.localisation import predict_spans
from uniformerv2.cli.options import (
    Classifying,
    FeatureBackend,
    ManyVideos,
    OptionalOutput,
    Output,
    Precision,
    Root,
    Split,
    StrideFrames,
    StrideSeconds,
    Videos,
    WindowFrames,
    WindowSeconds,
    Workers,
    refuse_options,
)
from uniformerv2.cli.output import FAILED, note, note_checkpoint, print_error, print_event, print_json, print_line
from uniformerv2.cli.spans import EVENT_OPTIONS, TIMELINE_OPTIONS, draw_spans, stream_spans
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.text import printable
from uniformerv2.video.views import Views

if TYPE_CHECKING:
    from uniformerv2.predict import Predictor
    from uniformerv2.predictions import Outcome, Prediction
    from uniformerv2.stream import StreamEvent, StreamPrediction


@dataclass(frozen=True, kw_only=True)
class Predict(Classifying):
    """Rank the classes for videos; a line of each on the terminal, or a row of each in a file."""

    videos: ManyVideos
    output: OptionalOutput = None
    """File to write instead of printing: .csv, .parquet or .jsonl, with a row for every video, read or not."""
    spans: Path | None = None
    """With a checkpoint of `train --task localise`: file for the spans that it finds, with their times: .json
    (ActivityNet's form) or .csv, of any number of videos; .srt, .vtt or .edl of one. Spans below --threshold are left
    out."""
    threshold: float = 0.0
    """Probability that the most likely class needs; below it, the answer is none of these."""
    root: Root = None
    split: Split = "all"
    views: Views = Views()
    batch_size: int | None = None
    """Clips that the model computes at once, of several videos together; None: 1 on a CPU, 8 on a GPU."""
    workers: Workers = WORKERS
    precision: Literal["auto", "fp32", "bf16", "fp8", "int8"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor. fp8: on GPUs that have it. int8: by OpenVINO, needs
    --calibration-videos."""
    backend: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "torch"
    """What runs the model; auto: compile on a GPU where that works, else torch (docs/inference.md)."""
    calibration_videos: Annotated[tuple[Path, ...], arg(metavar="VIDEO...")] = ()
    """Some dozen videos like those to come: for int8, and to compare any precision with the plain model."""

    def run(self) -> int:
        from uniformerv2.data.sources import find_videos
        from uniformerv2.data.tables import check_suffix, check_target
        from uniformerv2.predict import Predictor
        from uniformerv2.predictions import FORMATS, check_threshold, save_predictions
        from uniformerv2.progress import track
        from uniformerv2.timeline import check_top_k

        check_top_k(self.top_k)
        check_threshold(self.threshold)
        if self.output:
            check_suffix(self.output, FORMATS)
            check_target(self.output)
            if self.as_json:
                raise RecipeError("--json prints, --output writes to a file: choose one; a .jsonl file holds the same")
        rows = find_videos(self.videos, root=self.root, split=self.split, must_exist=False)
        if self.spans is not None:
            return predict_spans(self.checkpoint, rows, self.spans, **self._span_options())
        note_checkpoint(self.checkpoint)
        options = self.predictor_options("videos", "output", "spans", "threshold", "root", "split", "workers")
        predictor = Predictor(self.model(), **options)
        _print_notes(predictor)
        workers = min(self.workers, len(rows))  # one alone decodes on all processors
        found = predictor.predict_all(rows, workers=workers, top_k=self.top_k, threshold=self.threshold)
        reasons: list[str] = []
        outcomes = _remembering(zip(rows, found, strict=True), reasons)
        if self.output:
            shown = track(outcomes, "predicting", total=len(rows))
            save_predictions(self.output, shown, places=min(self.top_k, predictor.model.config.num_classes))
            print_line(f"{len(rows) - len(reasons)} of {len(rows)} videos, written to {self.output}")
        else:
            for outcome in outcomes:
                _print_outcome(*outcome, as_json=self.as_json)
        return _status(reasons, rows)

    def _span_options(self) -> dict[str, Any]:
        names = ("threshold", "batch_size", "device", "workers", "as_json")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Timeline(Classifying):
    """Classify windows that slide over videos: NAME.csv, a table, and NAME.svg, a picture, for each. With a localiser,
    both are of the spans that it finds."""

    videos: Videos
    output: Output
    """The folder to write to."""
    window_seconds: WindowSeconds = 2.0
    stride_seconds: StrideSeconds = None
    threshold: float = 0.3
    """Of a localiser: score that a span needs."""
    truth: Path | None = None
    """Of a localiser: file with the true spans of the videos, by their names: a manifest, ActivityNet's JSON, or any
    other file of labels that `data import spans` reads."""
    precision: Precision = "fp32"
    backend: FeatureBackend = "torch"

    def run(self) -> int:
        from uniformerv2.weights.checkpoint import is_localiser

        _check_videos(self.videos)
        if is_localiser(self.checkpoint):
            return _status(draw_spans(self), self.videos)
        return self._classify()

    def _classify(self) -> int:
        from uniformerv2.inference.sharing import sharing_report
        from uniformerv2.pages.timeline_picture import write_picture
        from uniformerv2.predict import Predictor
        from uniformerv2.timeline import check_top_k, timeline_files

        refuse_options(self, *TIMELINE_OPTIONS, why="is for the checkpoints of localisers, and this is none")
        files = timeline_files(self.output, self.videos)
        check_top_k(self.top_k)
        windows = {"window_seconds": self.window_seconds, "stride_seconds": self.stride_seconds}
        note_checkpoint(self.checkpoint)
        predictor = Predictor(self.model(), **self.predictor_options("videos", "output", *windows, *TIMELINE_OPTIONS))
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
    """Classify what a camera or another live source shows, as long as it runs; with a localiser, find spans in it."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """camera, camera:1, an address (rtsp://, http://, ...), or a file, which plays at its own pace."""
    window_frames: WindowFrames = None
    stride_frames: StrideFrames = 1
    frames_per_second: float | None = None
    """Frames that are taken; None: all. A window spans window-frames / frames-per-second seconds."""
    timeout_seconds: float = 10.0
    """After so long without a frame the source has failed."""
    delay_seconds: float | None = None
    """Of a localiser: from the end of a span to its news, at most; None: 8 strides and half a window."""
    threshold: float = 0.3
    """Of a localiser: score that a span needs."""
    precision: Precision = "fp32"
    backend: FeatureBackend = "torch"

    def run(self) -> int:
        from uniformerv2.weights.checkpoint import is_localiser

        return stream_spans(self) if is_localiser(self.checkpoint) else self._classify()

    def _classify(self) -> int:
        from uniformerv2.stream import StreamPredictor

        refuse_options(self, *EVENT_OPTIONS, why="is for the checkpoints of localisers, and this is none")
        note_checkpoint(self.checkpoint)
        predictor = StreamPredictor(self.model(), **self.predictor_options("source", *EVENT_OPTIONS))
        for line in (predictor.model.label_note, *predictor.report):
            note(line)
        with _display(self.as_json) as (show, show_event):
            for prediction in predictor.run(self.source, top_k=self.top_k, on_event=show_event):
                show(prediction)
        return 0


def _remembering(outcomes: Iterable[Outcome], reasons: list[str]) -> Iterator[Outcome]:
    """The same; `reasons` receives why videos could not be read."""
    for row, found in outcomes:
        if isinstance(found, Unreadable):
            reasons.append(found.reason)
        yield row, found


def _print_outcome(row: Annotation, found: Prediction | Unreadable, *, as_json: bool) -> None:
    from uniformerv2.predictions import outcome_json

    if as_json:
        print(json.dumps(outcome_json(row, found)), flush=True)
    elif not isinstance(found, Unreadable):  # whose reason goes to stderr
        end = "the end" if row.end is None else f"{row.end:g} s"
        print_line(found.video + ("" if row.interval == (None, None) else f" from {row.start or 0:g} s to {end}"))
        if found.label is None:
            print_line("  none of these")
        for label, score in zip(found.labels, found.scores, strict=True):
            print_line(f"  {score:6.1%}  {label}")


def _check_videos(videos: Sequence[Path]) -> None:
    if not videos:
        raise RecipeError("no videos given")


def _print_notes(predictor: Predictor) -> None:
    for line in (predictor.model.label_note, predictor.optimized.note, predictor.optimized.comparison):
        note(str(line or ""))


def _status(reasons: Sequence[str], videos: Sized) -> int:
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
        yield partial(print_json, "prediction"), lambda event: print_json(event.kind, event)
    elif not console.is_terminal:
        yield lambda prediction: print_line(_line(prediction)), print_event
    else:
        with Live(console=console, auto_refresh=False) as live:

            def show(prediction: StreamPrediction) -> None:
                live.update(Text(printable(_line(prediction)), no_wrap=True, overflow="ellipsis"), refresh=True)

            yield show, print_event


def _line(prediction: StreamPrediction) -> str:
    ranked = zip(prediction.labels, prediction.scores, strict=True)
    classes = "  ".join(f"{label} {score:.0%}" for label, score in ranked)
    losses = {"dropped": prediction.dropped, "damaged": prediction.damaged}
    counts = "".join(f", {count} {name}" for name, count in losses.items() if count)
    return f"{prediction.end:7.1f} s  {classes}  ({1000 * prediction.latency:.0f} ms{counts})"
