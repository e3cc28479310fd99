"""`uniformerv2 stream`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from uniformerv2.cli.options import (
    Checkpoint,
    Device,
    Head,
    Json,
    Precision,
    ReductionText,
    StrideFrames,
    TopK,
    WindowFrames,
)
from uniformerv2.cli.output import note

if TYPE_CHECKING:
    from uniformerv2.stream import StreamEvent, StreamPrediction


@dataclass(frozen=True)
class Stream:
    """Classify what a camera or another live source shows, as long as it runs."""

    checkpoint: Checkpoint
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """camera, camera:1, an address (rtsp://, http://, ...), or a file, which plays at its own pace."""
    window_frames: WindowFrames = None
    stride_frames: StrideFrames = 1
    frames_per_second: float | None = None
    """Frames that are taken; None: all. A window spans window-frames / frames-per-second seconds."""
    timeout_seconds: float = 10.0
    """After so long without a frame the source has failed."""
    top_k: TopK = 5
    head: Head = None
    precision: Precision = "fp32"
    reduction: ReductionText = None
    device: Device = "auto"
    as_json: Json = False

    def run(self) -> int:
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.stream import StreamPredictor

        predictor = StreamPredictor(
            self.checkpoint,
            window_frames=self.window_frames,
            stride_frames=self.stride_frames,
            frames_per_second=self.frames_per_second,
            timeout_seconds=self.timeout_seconds,
            head=self.head,
            precision=self.precision,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
            device=self.device,
        )
        for line in (predictor.model.label_note, *predictor.report):
            note(line)
        output = _Lines() if self.as_json else _LiveLine()
        with output:
            for prediction in predictor.run(self.source, top_k=self.top_k, on_event=output.show_event):
                output.show(prediction)
        return 0


class _Lines:
    """One JSON object a line."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, prediction: StreamPrediction) -> None:
        self._print("prediction", prediction)

    def show_event(self, event: StreamEvent) -> None:
        self._print(event.kind, event)

    def _print(self, kind: str, item: Any) -> None:
        print(json.dumps({**asdict(item), "kind": kind}), flush=True)


class _LiveLine:
    """One line that changes on a terminal; elsewhere a line for each prediction. Events go to stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, prediction: StreamPrediction) -> None:
        from rich.text import Text

        if self._console.is_terminal:
            self._live.update(Text(_line(prediction), no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            print(_line(prediction), flush=True)

    def show_event(self, event: StreamEvent) -> None:
        if event.kind == "end":
            print(event.message, file=sys.stderr)
        else:
            note(event.message)


def _line(prediction: StreamPrediction) -> str:
    classes = "  ".join(
        f"{label} {score:.0%}" for label, score in zip(prediction.labels, prediction.scores, strict=True)
    )
    losses = {"dropped": prediction.dropped, "damaged": prediction.damaged}
    counts = "".join(f", {count} {name}" for name, count in losses.items() if count)
    return f"{prediction.end:7.1f} s  {classes}  ({1000 * prediction.latency:.0f} ms{counts})"
