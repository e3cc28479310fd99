"""`uniformerv2 predict` and `timeline`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from uniformerv2.cli.options import (
    Checkpoint,
    Device,
    Head,
    Json,
    Output,
    Precision,
    ReductionText,
    StrideSeconds,
    TopK,
    Videos,
    WindowSeconds,
)
from uniformerv2.cli.output import FAILED, note, print_error
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.video.views import Views

if TYPE_CHECKING:
    from uniformerv2.predict import Predictor


@dataclass(frozen=True)
class Predict:
    """Rank the classes for videos."""

    checkpoint: Checkpoint
    videos: Videos
    views: Views = Views()
    top_k: TopK = 5
    head: Head = None
    batch_size: int | None = None
    """Clips that the model computes at once, of several videos together; None: 1 on a CPU, 8 on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor. int8: by OpenVINO, needs --calibration-videos."""
    backend: Literal["torch", "compile", "openvino", "onnxruntime"] = "torch"
    """What runs the model (docs/inference.md)."""
    reduction: ReductionText = None
    calibration_videos: Annotated[tuple[Path, ...], arg(metavar="VIDEO...")] = ()
    """Some dozen videos like those to come: for int8, and to compare any precision with the plain model."""
    device: Device = "auto"
    as_json: Json = False

    def run(self) -> int:
        _check_videos(self.videos)
        from uniformerv2.data.annotations import Unreadable
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.predict import Predictor

        predictor = Predictor(
            self.checkpoint,
            views=self.views,
            batch_size=self.batch_size,
            head=self.head,
            precision=self.precision,
            backend=self.backend,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
            calibration_videos=self.calibration_videos,
            device=self.device,
        )
        _print_notes(predictor)
        reasons = []
        for result in predictor.predict_all(self.videos, top_k=self.top_k):
            if isinstance(result, Unreadable):
                reasons.append(result.reason)
            elif self.as_json:
                print(json.dumps(asdict(result)), flush=True)
            else:
                print(result.video)
                for label, score in zip(result.labels, result.scores, strict=True):
                    print(f"  {score:6.1%}  {label}", flush=True)
        return _status(reasons, self.videos)


@dataclass(frozen=True)
class Timeline:
    """Classify windows that slide over videos: NAME.csv, a table, and NAME.svg, a picture, for each."""

    checkpoint: Checkpoint
    videos: Videos
    output: Output
    """The folder to write to."""
    window_seconds: WindowSeconds = 2.0
    stride_seconds: StrideSeconds = None
    top_k: TopK = 5
    head: Head = None
    precision: Precision = "fp32"
    reduction: ReductionText = None
    device: Device = "auto"
    as_json: Json = False

    def run(self) -> int:
        _check_videos(self.videos)
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.inference.sharing import sharing_report
        from uniformerv2.pages.timeline_picture import write_picture
        from uniformerv2.predict import Predictor
        from uniformerv2.timeline import check_top_k, timeline_files

        files = timeline_files(self.output, self.videos)
        check_top_k(self.top_k)
        predictor = Predictor(
            self.checkpoint,
            head=self.head,
            precision=self.precision,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
            device=self.device,
        )
        _print_notes(predictor)
        note(sharing_report(predictor.model.config))
        reasons = []
        for video, (table, picture) in zip(self.videos, files, strict=True):
            try:
                timeline = predictor.timeline(
                    video, window_seconds=self.window_seconds, stride_seconds=self.stride_seconds, progress=True
                )
            except VideoError as error:
                reasons.append(str(error))
                continue
            self.output.mkdir(parents=True, exist_ok=True)
            timeline.write_table(table, top_k=self.top_k)
            write_picture(picture, timeline)
            if self.as_json:
                for moment in timeline.moments(self.top_k):
                    print(json.dumps({"video": str(video), **moment._asdict()}))
            else:
                print(f"{video}: {len(timeline.start)} windows, written to {table} and {picture}", flush=True)
        return _status(reasons, self.videos)


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
