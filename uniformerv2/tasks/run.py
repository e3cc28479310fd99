"""A training run of any task: the videos and their split, model, loader and task, and the run's folder around them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from uniformerv2.atomic import write_text
from uniformerv2.attention_choice import read_record, written
from uniformerv2.data.annotations import Annotation, Unreadable, class_names
from uniformerv2.data.background import BACKGROUND, with_background
from uniformerv2.data.loader import VideoLoader
from uniformerv2.data.manifest import manifest_root, note_root
from uniformerv2.data.sources import Classes, data_root, read_annotations
from uniformerv2.data.split import split_annotations, with_groups
from uniformerv2.data.tables import check_names, csv_writer, relative_to
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks, rank_device, reporting_lost_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.model.attention import choose_kernels
from uniformerv2.model.kernels import AttentionChoices
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.tasks.feature_cache import FeatureCache
from uniformerv2.tasks.motion_first import learn_motions
from uniformerv2.tasks.start import build_model, fastest_attention, training_loader
from uniformerv2.tasks.table import find_task
from uniformerv2.tasks.video_task import Measurement, VideoTask
from uniformerv2.train.engine import SAVE_EVERY_SECONDS, Trainer
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import LoggerName, check_loggers, read_metrics
from uniformerv2.train.parallel import Parallel, check_parallel
from uniformerv2.train.precision import pick_compile, pick_training_precision
from uniformerv2.train.recipe import USUAL_TASK, Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.weights.checkpoint import save_model

Videos = str | Path | Sequence[Annotation]
M = TypeVar("M", bound=Measurement)

NOTHING_HELD_OUT = "nothing held out, so nothing is measured and there is no best.safetensors"


@dataclass(frozen=True)
class TrainingResult(Generic[M]):
    """A finished run."""

    last: Path  # checkpoint after the last epoch
    best: Path | None  # checkpoint of the epoch with the best held-out metric; None: nothing was held out
    evaluation: M | None  # of `last` on the held-out videos, with the views of the recipe; None: nothing was held out
    history: tuple[dict[str, Any], ...]  # the epochs' records of metrics.jsonl
    skipped: tuple[Unreadable, ...]  # one for each path


def train_model(
    data: str | Path | Sequence[Annotation],
    recipe: Recipe,
    output: str | Path,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    device: str = "auto",
    workers: int = WORKERS,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    parallel: Parallel = "ddp",
    save_every_seconds: float = SAVE_EVERY_SECONDS,
    loggers: Sequence[LoggerName] = (),
    feature_cache: str | Path | None = None,
    task: str = USUAL_TASK,
) -> TrainingResult[Any]:
    """Train a model for a task: "classification", or "multilabel" where a video may have several labels, or none.

    The other arguments and the errors are those of `train_classifier`, which describes them.
    """
    run, ranks = RunFolder(output), current_ranks()
    check_loggers(loggers)
    check_parallel(parallel)
    with _telling_how_to_go_on(run), ExitStack() as stack:
        ranks.on_rank_zero(lambda: run.check(resume=resume, overwrite=overwrite))
        recipe = _as_begun(run, recipe, task) if resume else recipe
        attention = ranks.on_rank_zero(lambda: read_record(run.attention)) if resume else None
        options: Any = {"workers": workers, "progress": progress}
        source: Any = {"classes": classes, "holdout": holdout, "holdout_list": holdout_list, "group": group}
        videos = _videos(data, recipe, run if resume else None, root=root, task=task, progress=progress, **source)
        parts = build_run(recipe, videos, task=task, device=rank_device(device), attention=attention, **options)
        options |= {"device": device, "parallel": parallel, "save_every_seconds": save_every_seconds}
        cache = _feature_cache(parts, Path(feature_cache or run.path / "features"))
        stack.enter_context(reporting_lost_ranks(ranks, "its own message says why; continue with --resume"))
        ranks.on_rank_zero(lambda: _begin(run, stack, parts, videos, task=task, resume=resume))
        stack.enter_context(reporting_device_failures(run.path, parts.recipe))
        _announce(parts, videos, run, progress=progress)
        learn_motions(parts.model, parts.recipe, run, train=partial(train_model, **options), progress=progress)
        trainer = Trainer(
            parts.model,
            parts.task,
            parts.loader if cache is None else cache.fill(parts.task, progress=progress),
            parts.recipe.optimization,
            run=run,
            save=partial(_save, parts.task, _origin(data, parts.recipe)),
            parallel=parallel,
            save_every_seconds=save_every_seconds,
            loggers=loggers,
            recipe=asdict(parts.recipe),
            progress=progress,
        )
        if resume:
            trainer.resume()
        trainer.fit()
        return _result(run, parts.task, _measure(trainer, parts.task, run) if videos.held_out else None)


@contextmanager
def _telling_how_to_go_on(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.how_to_go_on()) from None  # without the frames of the loop


# --- what a run is made of


class TrainingData(NamedTuple):
    """The videos of a run."""

    labels: tuple[str, ...]
    training: Sequence[Annotation]
    held_out: Sequence[Annotation]
    root: Path  # what the paths in the run's manifests are relative to


def split_data(
    data: Videos,
    recipe: Recipe,
    *,
    task: str,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    progress: bool = False,
) -> TrainingData:
    """Read the annotations and split them, with the seed of the recipe; see `train_classifier`. Draws its background.

    `progress` tells how much that was.
    """
    several_labels = find_task(task).several_labels
    annotations = read_annotations(data, root=root, classes=classes, several_labels=several_labels)
    root = data_root(data, annotations, root)
    shorten = relative_to(root)
    check_names(name for row in annotations for name in (shorten(str(row.path)), *row.labels))
    if group is not None:
        annotations = with_groups(annotations, group, root)
    labels = trained_classes(annotations, recipe, task=task)
    training, held_out = split_annotations(
        annotations,
        holdout=holdout,
        holdout_list=None if holdout_list is None else Path(holdout_list),
        seed=recipe.optimization.seed,
    )
    if not held_out and recipe.optimization.early_stop:
        raise RecipeError("early_stop needs held-out videos, and nothing is held out; take early_stop 0")
    if share := recipe.optimization.background:
        label, seed = "" if several_labels else BACKGROUND, recipe.optimization.seed
        training, held_out = with_background(training, held_out, share=share, label=label, seed=seed, progress=progress)
    return TrainingData(tuple(labels), training, held_out, root)


def _videos(data: Videos, recipe: Recipe, begun: RunFolder | None, *, root: Any, **source: Any) -> TrainingData:
    """Those of `split_data`; of a run that goes on from its own manifest those in it, windows of background and all."""
    if begun is None or data != begun.train:
        return split_data(data, recipe, root=root, **source)
    rows, root = read_split(begun, root=root), root or manifest_root(begun.train)
    return split_data(rows, recipe.vary(background=0.0), root=root, **source)


def trained_classes(annotations: Sequence[Annotation], recipe: Recipe, *, task: str) -> list[str]:
    """The classes of the head, sorted: those that occur, and that of the background where a recipe draws one.

    Raises:
        AnnotationError: fewer than the task needs.
    """
    chosen = find_task(task)
    own = {BACKGROUND} if recipe.optimization.background and not chosen.several_labels else set()
    return sorted({*class_names(annotations, minimum=chosen.min_classes - len(own)), *own})


class RunComponents(NamedTuple):
    """What a trainer is given."""

    recipe: Recipe  # with everything that "auto" and the like mean here
    model: UniFormerV2
    loader: VideoLoader
    task: VideoTask
    attention: AttentionChoices


def _feature_cache(parts: RunComponents, folder: Path) -> FeatureCache | None:
    if parts.recipe.model.cache_features == "none":
        return None
    return FeatureCache(parts.model, parts.recipe, parts.loader, folder)


def build_run(
    recipe: Recipe,
    videos: TrainingData,
    *,
    task: str,
    device: torch.device,
    workers: int = WORKERS,
    progress: bool = False,
    attention: AttentionChoices | None = None,
    model: UniFormerV2 | None = None,
) -> RunComponents:
    """Build model, loader and task of a recipe. Raises as `train_classifier`.

    Args:
        recipe, videos, task, device, workers, progress: as there.
        attention: the kernels of a run that goes on; None: they are measured, where that is worth while.
        model: trained in place of the one that the recipe starts from, with the labels of the videos; perhaps of a
            subclass, which no checkpoint could hold.
    """
    chosen = find_task(task)
    recipe = chosen.chosen(recipe)
    mirroring = chosen.mirroring(recipe.augmentation, videos.labels)
    reversing = chosen.reversing(recipe.augmentation, videos.labels)
    notes = mirroring.notes + reversing.notes
    say("\n".join(notes), progress=progress and bool(notes))
    recipe = recipe.vary(flip_labels=mirroring.pairs, reverse_labels=reversing.pairs).resolved()
    torch.manual_seed(recipe.optimization.seed)
    model = (build_model(recipe, videos.labels) if model is None else model).to(device)
    clip = recipe.clip.filled(model.preprocessing.num_frames, model.preprocessing.size)
    recipe = with_precision(replace(recipe, clip=clip), device, width=model.config.width)
    attention = fastest_attention(recipe, model) if attention is None else attention
    choose_kernels(model, attention)
    labelled: Any = {"mirrored_classes": mirroring.classes, "reversed_classes": reversing.classes}
    labelled |= {"several_labels": chosen.several_labels}
    loader = training_loader(recipe, model, videos.training, workers=workers, **labelled)
    built = chosen(recipe, model, videos.held_out, training=videos.training, workers=workers, progress=progress)
    return RunComponents(recipe, model, loader, built, attention)


def with_precision(recipe: Recipe, device: torch.device, *, width: int) -> Recipe:
    """The recipe that is run and saved: with what "auto" means here, the same on all ranks."""
    wanted = recipe.optimization
    chosen = pick_training_precision(wanted.precision, device, width=width), pick_compile(wanted.compile, device)
    precision, compiled = current_ranks().gather(chosen)[0]
    return replace(recipe, optimization=replace(wanted, precision=precision, compile=compiled))


# --- what is written and shown around a training


def _as_begun(run: RunFolder, recipe: Recipe, task: str) -> Recipe:
    """The recipe with what "auto" meant when the run began. Raises RecipeError for another task."""
    begun_for = current_ranks().on_rank_zero(run.read_task)
    if begun_for != task:
        raise RecipeError(f"{run.path}: the run was started with task {begun_for}, not {task}: resume it with that")
    chosen = {
        **asdict(recipe.optimization),
        "flip_labels": recipe.augmentation.flip and recipe.augmentation.flip_labels,
    }
    auto = [name for name in ("precision", "compile", "flip_labels", "monitor") if chosen[name] == "auto"]
    if not auto:
        return recipe
    begun = current_ranks().on_rank_zero(run.read_recipe)
    values = {**asdict(begun.optimization), **asdict(begun.augmentation)}
    return recipe.vary(**{name: values[name] for name in auto})


def _begin(
    run: RunFolder, stack: ExitStack, parts: RunComponents, videos: TrainingData, *, task: str, resume: bool
) -> None:
    """Lock the folder until the stack ends, and write what the run is given: paths from the root, noted beside it."""
    stack.enter_context(run.locked())
    shorten = relative_to(videos.root)

    def manifest(rows: Sequence[Annotation]) -> str:
        text = io.StringIO()
        write = csv_writer(text)
        write(("path", "label", "start", "end"))
        for row in rows:
            for label in (row.label, *row.other_labels):
                write((shorten(str(row.path)), label, row.start, row.end))
        return text.getvalue()

    split = {run.train: videos.training, run.held_out: videos.held_out}
    manifests = {file: manifest(rows) for file, rows in split.items() if rows}
    texts = {run.recipe: parts.recipe.to_json(task=task), **manifests}
    if parts.attention and not resume:  # what has no record goes on without
        texts[run.attention] = json.dumps(written(parts.attention), indent=2) + "\n"
    run.start(texts, resume=resume)
    note_root(videos.root, manifests)


def _measure(trainer: Trainer, task: VideoTask, run: RunFolder) -> Measurement:
    """The result of the run, which is written into its folder."""
    with trainer.step.evaluated() as model:
        evaluation = task.measure(model)

    def write() -> None:
        with run.saving(run.evaluation):
            write_text(run.evaluation, json.dumps(evaluation.to_json(), indent=2) + "\n")

    current_ranks().on_rank_zero(write)
    return evaluation


def _result(run: RunFolder, task: VideoTask, evaluation: M | None) -> TrainingResult[M]:
    history = tuple(record for record in read_metrics(run.metrics) if record["kind"] == "epoch")
    skipped = {path: video for some in current_ranks().gather(task.skipped) for path, video in some.items()}
    best = None if evaluation is None else run.best
    return TrainingResult(run.last, best, evaluation, history, tuple(skipped.values()))


def _save(task: VideoTask, origin: str, model: UniFormerV2, file: Path) -> None:
    task.describe(model)
    save_model(model, file, origin=origin)


def read_split(run: RunFolder, *, root: str | Path | None = None) -> list[Annotation]:
    """The rows that a run was begun with; `split` has the side of each, val for what is held out.

    Args:
        run: its folder.
        root: what the paths are relative to now; None: as the run has it.

    Raises:
        AnnotationError: its manifests cannot be read, or name videos that are not there.
    """
    sides, several_labels = {"train": run.train, "val": run.held_out}, find_task(run.read_task()).several_labels
    return [
        replace(row, split=side)
        for side, manifest in sides.items()
        if side == "train" or manifest.is_file()
        for row in read_annotations(manifest, root=root, several_labels=several_labels)
    ]


def _announce(parts: RunComponents, videos: TrainingData, run: RunFolder, *, progress: bool) -> None:
    """Three lines: the data, the model, and what will happen."""
    model, optimization, start = parts.model, parts.recipe.optimization, parts.recipe.model
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    head = [line for line in model.loading_report if line.startswith("head: ")]
    clip = model.preprocessing
    held_out = f"{len(videos.held_out)} held out" if videos.held_out else NOTHING_HELD_OUT
    steps = math.ceil(len(parts.loader) / optimization.accumulate)
    source = f"{start.arm or start.checkpoint or start.model}, {size:.1f} M parameters on {model_device(model)}"
    lines = [
        f"data: {len(videos.training)} training videos of {len(videos.labels)} classes, {held_out}",
        "; ".join([f"model: {source}", *head]),
        f"training: {optimization.epochs} epochs of {steps} steps, {optimization.batch_size} clips a step of "
        f"{clip.num_frames} frames, {clip.size[0]}x{clip.size[1]} pixels; learning rate {optimization.lr:g}, "
        f"{optimization.precision}; run folder {run.path}",
    ]
    say("\n".join(lines), progress=progress)


def _origin(data: Videos, recipe: Recipe) -> str:
    """Where the weights come from, for the checkpoints."""
    start = recipe.model.arm or recipe.model.model or recipe.model.checkpoint
    name = Path(data).name if isinstance(data, str | Path) else f"{len(data)} annotations"
    return f"trained on {name}, from {start}"
