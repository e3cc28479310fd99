"""The demo: draw actions, arm a small image transformer, train it on their videos, and show that order matters.

Everything goes the public way: H.264 files, a manifest, `train_classifier`, `evaluate`, `Predictor`.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from uniformerv2.demo.motions import MOTIONS, PAIRS, draw, write_dataset, write_video
from uniformerv2.demo.report import Column, Example, Report, write_report
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS, available_cores
from uniformerv2.measuring.evaluation import evaluate
from uniformerv2.measuring.results import Evaluation
from uniformerv2.predict import Prediction, Predictor
from uniformerv2.progress import say
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.log import read_metrics
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.views import Views, segment_indices

ASSET = "stills_vit.safetensors"  # in uniformerv2/assets, from tools/pretrain_stills.py
NUM_FRAMES = 8
EVALUATION_VIEWS = Views(clips=3)  # with 33 frames a video, the three clips are symmetric in time

SUMMARY = (
    "Twelve actions were drawn in pairs that are each other's time reversal and encoded as H.264 files; a small image "
    "transformer, taught on drawn stills only, was armed with UniFormerV2's local and global blocks and trained on "
    "them. The same transformer without those blocks, averaging its frames, was trained the same way for comparison."
)


@dataclass(frozen=True)
class Effort:
    """How much is drawn and trained. The default takes a few minutes on two cores."""

    train_clips: int = 300  # of each motion
    held_out_clips: int = 25  # of each motion
    epochs: int = 3
    batch_size: int = 16
    lr: float = 7e-4


@dataclass(frozen=True)
class DemoResult:
    """The outcome of the demo."""

    report: Path
    with_order: Evaluation
    without_order: Evaluation
    prediction: Prediction  # for a video drawn after the training
    label: str  # of that video
    seconds: float


def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    effort: Effort | None = None,
    workers: int = WORKERS,
    progress: bool = False,
) -> DemoResult:
    """Run the demo and write its videos, both runs and the report into a folder.

    Args:
        output: the folder; one that is not empty is refused, unless it is a former demo and `overwrite` is given.
        seed: decides the videos and both trainings.
        overwrite: replace a former demo.
        effort: how much is drawn and trained.
        workers: processes that read videos beside the one that trains; 0: this one.
        progress: show what is being done.

    Raises:
        RecipeError: the folder must not be touched.
    """
    effort = effort or Effort()
    folder = DemoFolder(Path(output))
    folder.prepare(overwrite=overwrite)
    threads = torch.get_num_threads()
    try:
        # the model is so small that a second thread waits more than it computes; a core is left for the reader
        torch.set_num_threads(1)
        return _run(folder, effort, seed=seed, workers=workers, progress=progress)
    finally:
        torch.set_num_threads(threads)


def _run(folder: DemoFolder, effort: Effort, *, seed: int, workers: int, progress: bool) -> DemoResult:
    watch = Stopwatch(progress)
    with watch.measure("drawing and encoding"):
        manifest = write_dataset(
            folder.videos,
            train_clips=effort.train_clips,
            held_out_clips=effort.held_out_clips,
            seed=seed,
            processes=available_cores(),
            progress=progress,
        )
    runs = [folder.run(contender) for contender in CONTENDERS]
    with as_file(files("uniformerv2") / "assets" / ASSET) as asset:
        recipe = demo_recipe(str(asset), effort, seed=seed)
        for contender, run in zip(CONTENDERS, runs, strict=True):
            with watch.measure(f"training {contender.name}"):
                train_classifier(manifest, contender.adapt(recipe), run, workers=workers, progress=progress)

    with watch.measure("evaluation and report"):
        predictors = [Predictor(run / "last.safetensors", views=EVALUATION_VIEWS) for run in runs]
        options: dict[str, Any] = {"views": EVALUATION_VIEWS, "workers": workers, "progress": progress}
        evaluations = [
            evaluate(predictor.model, manifest, split="test", batch_size=24, **options) for predictor in predictors
        ]
        rng = np.random.default_rng((seed, len(PAIRS)))  # no clip of the data set has this seed
        label = MOTIONS[rng.integers(len(MOTIONS))]
        write_video(folder.unseen, draw(label, rng))
        report = Report(
            title="UniFormerV2: what the order of frames tells",
            summary=SUMMARY,
            columns=[
                Column(contender.name, contender.about, evaluation, *_history(run / "metrics.jsonl"))
                for contender, evaluation, run in zip(CONTENDERS, evaluations, runs, strict=True)
            ],
            pairs=PAIRS,
            unseen=_example(folder.unseen, label, predictors),
            examples=[_example(path, label, predictors) for path, label in _pick_examples(evaluations[0])],
            facts={},
        )
        prediction = predictors[0].predict(folder.unseen)
    facts = _facts(effort, recipe, watch, seed=seed, device=predictors[0].device)
    write_report(folder.report, replace(report, facts=facts))
    with_order, without_order = evaluations
    return DemoResult(folder.report, with_order, without_order, prediction, label, watch.total)


def demo_recipe(asset: str, effort: Effort, *, seed: int) -> Recipe:
    """How the demo arms and trains: the paper's temporal layout, clips as they are, everything learned."""
    return Recipe(
        ModelRecipe(arm=asset, layout="temporal"),
        ClipRecipe(num_frames=NUM_FRAMES, size=64),
        Optimization(
            epochs=effort.epochs,
            batch_size=effort.batch_size,
            lr=effort.lr,
            warmup_epochs=effort.epochs / 20,
            label_smoothing=0.0,
            clip_norm=1.0,
            precision="fp32",
            seed=seed,
        ),
        # left and right are classes here, and so are large and small
        Augmentation(num_ops=0, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0),
    )


def order_blind(recipe: Recipe) -> Recipe:
    """The same recipe for the image transformer alone: the mean of its frames is classified."""
    model = replace(recipe.model, local_blocks="none", local_mixing=None, temporal_downsample=False, global_after=())
    return replace(recipe, model=model)


@dataclass(frozen=True)
class Contender:
    """One of the two models that are compared."""

    name: str
    about: str
    folder: str
    adapt: Callable[[Recipe], Recipe]  # from the demo's recipe to its own


CONTENDERS = (
    Contender(
        "UniFormerV2",
        "Armed for video: local blocks, temporal downsampling, three global stages.",
        "uniformerv2",
        lambda recipe: recipe,
    ),
    Contender(
        "order-blind backbone",
        "The same image transformer alone: the mean of its frames' class tokens, whichever came first.",
        "order_blind",
        order_blind,
    ),
)


class DemoFolder:
    """The files that the demo writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.videos = path / "videos"
        self.unseen = path / "unseen.mp4"
        self.report = path / "report.html"

    def run(self, contender: Contender) -> Path:
        return self.path / contender.folder

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder, or empty a former demo's. Raises RecipeError and touches nothing else."""
        own = {self.videos, self.unseen, self.report, *(self.run(contender) for contender in CONTENDERS)}
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path}: not a folder; the demo needs a folder of its own")
        found = set(self.path.iterdir()) if self.path.is_dir() else set()
        if found and not overwrite:
            raise RecipeError(
                f"{self.path}: not empty; replace a former demo with --overwrite, or choose another folder"
            )
        if others := sorted(found - own):
            raise RecipeError(
                f"{self.path}: holds other files than a demo's, such as {others[0].name}; choose another folder"
            )
        try:
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"{self.path}: cannot be written to ({error.strerror})") from error


class Stopwatch:
    """Wall time of each stage, in seconds; announces the stages."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._start = progress, time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        say(f"{len(self.seconds) + 1} of 4: {stage}", progress=self._progress, style="bold")
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start


def _history(metrics: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Step and epoch records."""
    records = read_metrics(metrics)
    steps = [record for record in records if record["kind"] == "step"]
    return steps, [record for record in records if record["kind"] == "epoch"]


def _pick_examples(evaluation: Evaluation) -> list[tuple[Path, str]]:
    """The first held-out video of one motion of each pair, then the first two that the model got wrong."""
    first = {video.label: video for video in reversed(evaluation.videos)}
    chosen = [first[pair[number % 2]] for number, pair in enumerate(PAIRS)]
    wrong = [video for video in evaluation.videos if video.labels[0] != video.label and video not in chosen]
    return [(Path(video.path), video.label) for video in chosen + wrong[:2]]


@torch.inference_mode()
def _example(path: Path, label: str, predictors: Sequence[Predictor]) -> Example:
    with VideoReader(path) as reader:
        frames = reader.frames_at(segment_indices(len(reader), NUM_FRAMES))
    model = predictors[0].model
    # (frames, 3, h, w) -> (1, 3, frames, h, w); uint8, which the model normalises itself
    features = model.forward_features(frames.transpose(0, 1)[None].to(predictors[0].device), attention=True)
    assert features.attention is not None
    predictions = [predictor.predict(path, top_k=None) for predictor in predictors]
    return Example(
        title="/".join(path.parts[-2:]),
        label=label,
        video=path.read_bytes(),
        frames=frames.numpy(),
        attention=torch.stack([stage.patches[0] for stage in features.attention]).cpu().numpy(),
        scores=[dict(zip(answer.labels, answer.scores, strict=True)) for answer in predictions],
    )


def _facts(effort: Effort, recipe: Recipe, watch: Stopwatch, *, seed: int, device: torch.device) -> dict[str, str]:
    optimization = recipe.optimization
    return {
        "command": f"uniformerv2 demo --seed {seed}",
        "videos": f"{len(MOTIONS)} motions; {effort.train_clips} training and {effort.held_out_clips} held-out files "
        "of each; 33 frames of 64 x 64 pixels, H.264",
        "image transformer": f"{ASSET}, pre-trained on drawn stills by tools/pretrain_stills.py",
        "training": f"{optimization.epochs} epochs, batches of {optimization.batch_size}, AdamW at "
        f"{optimization.lr:g}, {NUM_FRAMES} random frames a clip, no other augmentation; both models alike",
        "times": ", ".join(f"{stage} {_clock(seconds)}" for stage, seconds in watch.seconds.items()),
        "total": _clock(watch.total),
        "machine": f"{platform.system()} {platform.machine()}, {available_cores()} cores, "
        f"{torch.get_num_threads()} thread for the model on {device}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in ("uniformerv2", "torch", "av")),
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def print_result(result: DemoResult) -> None:
    """Print the accuracies of both models, pair by pair, and where the report is."""
    console = Console()
    evaluations = result.with_order, result.without_order
    table = Table()
    for title in ("held-out videos", *(contender.name for contender in CONTENDERS)):
        table.add_column(title, justify="right" if table.columns else "left")
    for pair in PAIRS:
        table.add_row(" / ".join(pair), *(f"{100 * _pair_accuracy(found, pair):.1f} %" for found in evaluations))
    table.add_section()
    table.add_row("all", *(f"[bold]{100 * found.top1:.1f} %[/]" for found in evaluations))
    console.print(table)
    answer, score = result.prediction.labels[0], result.prediction.scores[0]
    console.print(f"a new video of {result.label}: {answer} ({100 * score:.1f} %)", highlight=False)
    console.print(f"{_clock(result.seconds)} in all. Report: {result.report}", highlight=False, soft_wrap=True)


def _pair_accuracy(evaluation: Evaluation, pair: tuple[str, str]) -> float:
    members = [row for row in evaluation.classes if row.label in pair]
    return sum(row.correct for row in members) / sum(row.videos for row in members)
