"""`uniformerv2 stream`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.output import note
from uniformerv2.errors import RecipeError

if TYPE_CHECKING:
    from uniformerv2.stream import StreamEvent, StreamPrediction


@dataclass(frozen=True)
class Stream:
    """Say what a camera or a stream shows, while it goes on."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors, or the name of a published one."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """camera, camera:1, an address (rtsp://, http://, ...), or a file, which plays at its own pace."""
    window: int | None = None
    """Frames that the model sees together; None: as many as it was trained with."""
    stride: int = 1
    """Frames from the start of a window to that of the next."""
    rate: float | None = None
    """Frames per second that are taken; None: all. A window spans window / rate seconds."""
    timeout: float = 10.0
    """Seconds without a frame after which the source has failed."""
    top_k: int = 3
    """How many classes to name."""
    head: Literal["k400", "k600", "k700"] | None = None
    """Only these classes of a Kinetics-710 head."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print one JSON object a line and nothing else."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor."""
    reduction: Annotated[str | None, arg(metavar="merge:AMOUNT")] = None
    """Compute fewer tokens of each frame, nearly the same scores (docs/inference.md)."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        if self.top_k < 1:
            raise RecipeError(f"top_k must be at least 1, got {self.top_k}")
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.stream import StreamPredictor

        predictor = StreamPredictor(
            self.checkpoint,
            window=self.window,
            stride=self.stride,
            rate=self.rate,
            timeout=self.timeout,
            device=self.device,
            head=self.head,
            precision=self.precision,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
        )
        for line in (predictor.model.label_note, *predictor.report):
            note(line)
        output = _Lines() if self.as_json else _LiveLine()
        with output:
            for prediction in predictor.run(self.source, top_k=self.top_k, on_event=output.tell):
                output.show(prediction)
        return 0


class _Lines:
    """One JSON object a line, for programs."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, prediction: StreamPrediction) -> None:
        self._print("prediction", prediction)

    def tell(self, event: StreamEvent) -> None:
        self._print(event.kind, event)

    def _print(self, kind: str, what: Any) -> None:
        print(json.dumps({**asdict(what), "kind": kind}), flush=True)


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

    def tell(self, event: StreamEvent) -> None:
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
