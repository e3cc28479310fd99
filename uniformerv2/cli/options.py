"""Options that several commands have: one name, type, meaning and short form each.

What an output is differs from command to command, so that each one says it; tests/test_signatures.py compares the
rest, defaults included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS

if TYPE_CHECKING:
    from uniformerv2.model.uniformerv2 import UniFormerV2

Checkpoint = Annotated[
    Positional[Path],
    arg(
        metavar="CHECKPOINT",
        help="A checkpoint: a run's folder (its best.safetensors, else last), a file, the name of a published one, or "
        "a repository of the hub.",
    ),
]
LabelsFile = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="Names of the classes, one a line in UTF-8, in the order of the head's rows; None: the checkpoint's own.",
    ),
]
WhichWeights = Annotated[Literal["model", "ema"], arg(help="ema: the averaged weights of a file that has both.")]
Data = Annotated[
    Positional[Path],
    arg(
        metavar="DATA",
        help="A folder with one folder per class (or with train, val and test that have them), a manifest (CSV or "
        "Parquet) with the columns path,label[,start,end][,split][,group], a list of paths and class numbers, or tar "
        "shards.",
    ),
]
Task = Annotated[
    str,
    arg(
        help="What is trained: classification; multilabel, where a video may have several labels, or none "
        "(docs/multilabel.md); localise, which finds labelled spans in films and has options of its own, listed by "
        "`uniformerv2 train --task localise --help` (docs/localisation.md)."
    ),
]
Videos = Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO...", help="Video files, or folders of images.")]
ManyVideos = Annotated[
    Positional[tuple[Path, ...]],
    arg(
        metavar="DATA...",
        help="Video files, folders of videos, manifests (CSV or Parquet), lists, or tar shards; labels are not needed.",
    ),
]

Output = Annotated[Path, arg(aliases=["-o"])]
OptionalOutput = Annotated[Path | None, arg(aliases=["-o"])]
Root = Annotated[
    Path | None,
    arg(
        help="What the paths in a manifest are relative to; None: its own folder, or for the manifests of a run the "
        "folder of the videos that it was trained on."
    ),
]
Classes = Annotated[
    Path | None, arg(metavar="FILE", help="Names that class numbers in a list or a manifest stand for, a name a line.")
]
Split = Annotated[
    Literal["held-out", "train", "val", "test", "all"],
    arg(help="Which rows of a manifest that has a split column; held-out: all but train."),
]
Holdout = Annotated[
    float | None,
    arg(
        help="Share of the files of each class that is held out, drawn with --seed. 0: nothing; None: 0.2, or nothing "
        "where that cannot be drawn."
    ),
]
HoldoutList = Annotated[
    Path | None, arg(help="File with what is held out instead: a path or pattern a line, such as anna_*.")
]
Group = Annotated[
    str | None,
    arg(
        help="Regular expression for the source of a video (person, film, camera) in its path from DATA: its first "
        "group, or all that it matches. A drawn holdout has whole sources, so that none is on both sides."
    ),
]
FeatureCache = Annotated[
    Path | None,
    arg(
        help="Folder for what --cache-features keeps, and the embeddings of films, which runs can share; None: "
        "features in the folder of the run."
    ),
]
Resume = Annotated[FlagCreatePairsOff[bool], arg(help="Continue what the same command has begun in this output.")]
Overwrite = Annotated[FlagCreatePairsOff[bool], arg(help="Replace what the output holds.")]
Json = Annotated[FlagCreatePairsOff[bool], arg(name="json", help="Print JSON and nothing else.")]

BatchSize = Annotated[int, arg(help="Clips that the model sees at once.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp8", "auto"],
    arg(
        help="Number format that the model computes in; auto: the fastest of fp32 and bf16 on this processor. fp8: on "
        "GPUs that have it."
    ),
]
FeatureBackend = Annotated[
    Literal["auto", "torch", "compile"],
    arg(help="What runs the model; auto: compile on a GPU where that works, else torch (docs/inference.md)."),
]
ReductionText = Annotated[
    str | None,
    arg(
        metavar="METHOD:AMOUNT",
        help="Compute fewer tokens, with nearly the same scores: merge:AMOUNT or unchanged:AMOUNT (docs/inference.md).",
    ),
]
Device = Annotated[str, arg(help="auto (a GPU where there is one), cpu, cuda, ...")]
Workers = Annotated[int, arg(help="Processes that read videos; 0 reads in the process that computes.")]
Limit = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="NAME=VALUE",
        help="What one video may cost at most: pixels, chunk_bytes, duration_seconds, frames, seconds or memory_bytes, "
        "such as pixels=200M or seconds=8h (docs/limits.md). May be given several times.",
    ),
]
TIoU = Annotated[
    tuple[float, ...], arg(help="Other thresholds of temporal intersection over union, such as 0.5 0.75 0.95.")
]
Head = Annotated[Literal["k400", "k600", "k700"] | None, arg(help="Only these classes of a Kinetics-710 head.")]
TopK = Annotated[int, arg(help="How many classes to name.")]

NumFrames = Annotated[int, arg(help="Frames of a clip, spread evenly over the video.")]
WindowSeconds = Annotated[float | None, arg(help="Length of a window; None: the whole video is one window.")]
StrideSeconds = Annotated[
    float | None, arg(help="From the start of a window to that of the next; None: as long as a window.")
]
WindowFrames = Annotated[
    int | None, arg(help="Length of a window; None: as many frames as the model was trained with.")
]
StrideFrames = Annotated[int, arg(help="From the start of a window to that of the next.")]


def option_names(command: Any) -> set[str]:
    """The options of a command, without their dashes."""
    hints = get_type_hints(command)
    names: set[str] = set()
    for option in fields(command):
        kind = hints[option.name]
        names |= option_names(kind) if is_dataclass(kind) else {option.name.replace("_", "-")}
    return names


def refuse_options(command: Any, *names: str, why: str) -> None:
    """Raises RecipeError for the first of these options that has another value than its default."""
    for option in fields(command):
        value = getattr(command, option.name)
        if option.name in names and value != option.default:
            if is_dataclass(value):  # of several options
                refuse_options(value, *(one.name for one in fields(value)), why=why)
            raise RecipeError(f"--{option.name.replace('_', '-')} {why}")


def result_file(output: Path | None, usual: Path) -> Path:
    """Where a result goes. Raises RecipeError: none is given, and the folder of the usual one cannot be written to."""
    if output is None and not os.access(usual.parent, os.W_OK):
        raise RecipeError(f"{usual.parent}: cannot be written to; name a file for the result with --output")
    return output or usual


def values(command: Any, *but: str) -> dict[str, Any]:
    """The options of a command by their names, which are those of the function that it calls; without some of them."""
    return {option.name: getattr(command, option.name) for option in fields(command) if option.name not in but}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The options of a command that loads a checkpoint."""

    labels: LabelsFile = None
    weights: WhichWeights = "model"

    def loading_options(self) -> dict[str, Any]:
        """Those for `load_model`, by their names there."""
        from uniformerv2.weights.labels import read_labels

        return {"labels": read_labels(self.labels) if self.labels else None, "weights": self.weights}


@dataclass(frozen=True, kw_only=True)
class Measuring(Loading):
    """The options of a command that runs a checkpoint on many videos."""

    checkpoint: Checkpoint
    root: Root = None
    classes: Classes = None
    resume: Resume = False
    batch_size: BatchSize = 8
    workers: Workers = WORKERS
    limit: Limit = ()
    precision: Precision = "fp32"
    backend: FeatureBackend = "torch"
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class Classifying(Loading):
    """The options of a command that names the classes of what it sees."""

    checkpoint: Checkpoint
    top_k: TopK = 5
    head: Head = None
    reduction: ReductionText = None
    device: Device = "auto"
    limit: Limit = ()
    as_json: Json = False

    def model(self) -> UniFormerV2:
        from uniformerv2.weights.loading import resolve_model

        return resolve_model(self.checkpoint, device=self.device, **self.loading_options())

    def predictor_options(self, *but: str) -> dict[str, Any]:
        """Those for a `Predictor` or a `StreamPredictor`, by their names there."""
        from uniformerv2.inference.reduction import Reduction

        reduction = Reduction.parse(self.reduction) if self.reduction else None
        own = ("checkpoint", "labels", "weights", "top_k", "limit", "as_json")
        return values(self, *own, *but) | {"reduction": reduction}
