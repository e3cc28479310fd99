"""`uniformerv2 predict`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.output import FAILED, note, print_error
from uniformerv2.errors import RecipeError, UniFormerV2Error

if TYPE_CHECKING:
    from uniformerv2.predict import Predictor


@dataclass(frozen=True)
class Predict:
    """Say what videos show."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors."""
    videos: Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO...")]
    """Video files, or folders of frame images."""
    top_k: int = 5
    """How many classes to name."""
    clips: int = 1
    """Clips spread over each video, averaged."""
    crops: Literal[1, 3] = 1
    """1: the centre of each clip; 3: three crops along its longer side, averaged."""
    batch_size: int | None = None
    """Clips that the model sees at once, of several videos together; None: 1 on a CPU, 8 on a GPU."""
    timeline: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where to write what windows show that slide over each video: NAME.svg, a picture, and NAME.csv, a table."""
    window: float | None = None
    """Seconds of a window of the timeline; None: 2."""
    stride: float | None = None
    """Seconds from the start of a window to that of the next; None: as long as a window."""
    head: Literal["k400", "k600", "k700"] | None = None
    """Only these classes of a Kinetics-710 head."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print one JSON object a line and nothing else."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor. int8 is made with OpenVINO and needs --calibration."""
    backend: Literal["torch", "compile", "openvino", "onnxruntime"] = "torch"
    """What runs the model (docs/inference.md)."""
    reduction: Annotated[str | None, arg(metavar="METHOD:AMOUNT")] = None
    """Compute fewer tokens, nearly the same scores: merge:AMOUNT or unchanged:AMOUNT (docs/inference.md)."""
    calibration: Annotated[tuple[Path, ...], arg(metavar="VIDEO...")] = ()
    """Some dozen videos like those to come: for int8, and to see in any precision what it changes."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        if not self.videos or self.top_k < 1:
            raise RecipeError(
                f"need a video and top_k of at least 1, got {len(self.videos)} videos, top_k {self.top_k}"
            )
        self._check_timeline()
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.inference.sharing import sharing_report
        from uniformerv2.predict import Predictor
        from uniformerv2.video.views import Views

        predictor = Predictor(
            self.checkpoint,
            device=self.device,
            views=Views(self.clips, self.crops),
            head=self.head,
            precision=self.precision,
            backend=self.backend,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
            calibration_videos=self.calibration,
        )
        for line in (predictor.model.label_note, predictor.optimized.note, predictor.optimized.comparison):
            note(str(line or ""))
        if self.timeline:
            note(sharing_report(predictor.model.config))
        failures = list(self._look_at_windows(predictor) if self.timeline else self._look(predictor))
        for failure in failures:
            print_error(failure)
        if failures and len(self.videos) > 1:
            print_error(f"{len(failures)} of {len(self.videos)} videos could not be read")
        return FAILED if failures else 0

    def _look(self, predictor: Predictor) -> Iterator[UniFormerV2Error]:
        """Print what each video shows; yields what went wrong."""
        results = predictor.predict_all(self.videos, batch_size=self.batch_size, top_k=self.top_k)
        for result in results:
            if isinstance(result, UniFormerV2Error):
                yield result
            elif self.as_json:
                print(json.dumps(asdict(result)), flush=True)
            else:
                print(result.video)
                for label, score in zip(result.labels, result.scores, strict=True):
                    print(f"  {score:6.1%}  {label}", flush=True)

    def _look_at_windows(self, predictor: Predictor) -> Iterator[UniFormerV2Error]:
        """Write the timeline of each video; yields what went wrong."""
        for video in self.videos:
            try:
                self._write_timeline(predictor, video)
            except UniFormerV2Error as error:
                yield error

    def _write_timeline(self, predictor: Predictor, video: Path) -> None:
        from rich.console import Console

        from uniformerv2.pages.timeline_picture import write_picture
        from uniformerv2.predict import TIMELINE_WINDOW

        window = TIMELINE_WINDOW if self.window is None else self.window
        timeline = predictor.timeline(video, window=window, stride=self.stride, console=Console(stderr=True))
        table, picture = self._targets(video)
        timeline.write_table(table, top_k=self.top_k)
        write_picture(picture, timeline)
        if self.as_json:
            for moment in timeline.moments(self.top_k):
                print(json.dumps({"video": str(video), **moment._asdict()}))
        else:
            print(f"{video}: {len(timeline.start)} windows, written to {table} and {picture}", flush=True)

    def _targets(self, video: Path) -> tuple[Path, Path]:
        assert self.timeline is not None
        return self.timeline / f"{video.stem}.csv", self.timeline / f"{video.stem}.svg"

    def _check_timeline(self) -> None:
        if self.timeline is None:
            if self.window is not None or self.stride is not None:
                raise RecipeError("--window and --stride are for a timeline; give --timeline FOLDER too")
            return
        if self.clips != 1 or self.crops != 1:
            raise RecipeError("a window of a timeline is one clip; leave --clips and --crops out")
        if self.batch_size is not None:
            raise RecipeError("the windows of a timeline come one by one; leave --batch-size out")
        stems = Counter(video.stem for video in self.videos)
        if stems and (most := stems.most_common(1)[0])[1] > 1:
            raise RecipeError(f"{most[1]} videos would be written to {most[0]}.csv; give one at a time")
        self.timeline.mkdir(parents=True, exist_ok=True)
