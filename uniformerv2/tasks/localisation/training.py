"""Training a localiser: from films with labelled spans to one file that finds spans in others."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.data.manifest import note_root
from uniformerv2.data.sources import Classes, data_root, find_videos
from uniformerv2.data.split import with_groups
from uniformerv2.data.tables import check_names, relative_to
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.digests import weights_digest
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.tasks.localisation.batches import FilmLoader
from uniformerv2.tasks.localisation.checkpoint import LocaliserModel, build_head, save_localiser
from uniformerv2.tasks.localisation.end_to_end import ClipLoader, EndToEnd, EndToEndTask, OpenedFilms
from uniformerv2.tasks.localisation.films import (
    EmbeddedFilm,
    EmbeddingCache,
    Film,
    films_of,
    manifest_text,
    split_films,
    strange_spans,
)
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.task import LocalisationResult, LocalisationTask
from uniformerv2.train.choices import SPAN_TASK
from uniformerv2.train.engine import SAVE_EVERY_SECONDS, Trainer
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import LoggerName, check_loggers, read_metrics
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.weights.loading import resolve_model

LESS_MEMORY = "start another run with a smaller batch_size or fewer crop_windows, which finds its embeddings there"


@dataclass(frozen=True)
class LocaliserResult:
    """A finished training of a localiser."""

    last: Path  # checkpoint after the last epoch
    best: Path | None  # checkpoint of the epoch with the best held-out metric; None: nothing was measured
    evaluation: LocalisationResult | None  # of `last` on the held-out films; None: no span is held out
    history: tuple[dict[str, Any], ...]  # the epochs' records of metrics.jsonl
    skipped: tuple[Unreadable, ...]  # films that could not be read


@dataclass(frozen=True)
class FilmData:
    """The films of a run."""

    labels: tuple[str, ...]
    training: Sequence[Film]
    held_out: Sequence[Film]
    root: Path  # what the paths in the run's manifests are relative to


def train_localiser(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[Annotation],
    recipe: LocaliserRecipe,
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
    save_every_seconds: float = SAVE_EVERY_SECONDS,
    loggers: Sequence[LoggerName] = (),
    feature_cache: str | Path | None = None,
) -> LocaliserResult:
    """Train a head that finds labelled spans in films, on the embeddings of a video model.

    Windows are embedded once and kept, unless `video_lr` trains the video model too. A checkpoint has both in one file.

    Args:
        model: embeds the windows: a checkpoint or a model, as of `Predictor`, best trained on clips of the actions.
        data: a manifest, or annotations. The rows of one file are its spans; they may overlap. Rows without a label
            stand for films of which nothing is to be found, and what no span covers shows no action.
        recipe: everything else that the result depends on.
        output: folder of the run, see `RunFolder`.
        root, classes, holdout_list, group, device, workers, resume, overwrite, progress: as of `train_classifier`.
        save_every_seconds, loggers: as there.
        holdout: share of all films that is held out; 0: nothing; None: 0.2.
        feature_cache: folder of embeddings that runs can share; None: "features" in the folder of the run.

    Raises:
        RecipeError, AnnotationError, CheckpointError, VideoError: as `train_classifier`.
        Terminated, KeyboardInterrupt: as there; the run can be resumed.
    """
    run = RunFolder(output)
    one_process()
    check_loggers(loggers)
    run.check(resume=resume, overwrite=overwrite)
    source: Any = {"root": root, "classes": classes, "holdout": holdout, "holdout_list": holdout_list}
    films = split_data(data, recipe, group=group, **source)
    cache = _cache(resolve_model(model, device=device), recipe, Path(feature_cache or run.path / "features"))
    options: Any = {"save_every_seconds": save_every_seconds, "loggers": loggers, "progress": progress}
    options |= {"skipped": cache.skipped, "workers": workers}
    try:
        with ExitStack() as stack:
            _begin(run, stack, films, recipe, cache.model, checkpoint=_source(model), resume=resume)
            embedded = _embedded(run, films, cache, workers=workers, progress=progress)
            trainer, task = build_trainer(run, cache.model, films.labels, recipe, embedded, **options)
            if resume:
                trainer.resume()
            trainer.fit()
            found = _measure(trainer, task, run, films.held_out, cache.skipped)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.how_to_go_on()) from None  # without the frames of the loop
    return _result(run, found, cache.skipped)


def _cache(video: UniFormerV2, recipe: LocaliserRecipe, folder: Path) -> EmbeddingCache | OpenedFilms:
    if recipe.video_lr:
        return OpenedFilms(copy.deepcopy(video), recipe)  # a model that is given stays as it is
    return EmbeddingCache(video, recipe, folder)


def one_process() -> None:
    """Raises RecipeError where there are others."""
    if current_ranks().world > 1:
        raise RecipeError("a localiser is trained and measured by one process; start it without torchrun")


def split_data(
    data: str | Path | Sequence[Annotation],
    recipe: LocaliserRecipe,
    *,
    root: str | Path | None,
    classes: Classes | None,
    holdout: float | None,
    holdout_list: str | Path | None,
    group: str | None,
) -> FilmData:
    """Read the films and split them, with the seed of the recipe; see `train_localiser`."""
    rows = find_videos(data, root=root, classes=classes)
    folder = data_root(data, rows, root)
    shorten = relative_to(folder)
    check_names(name for row in rows for name in (shorten(str(row.path)), row.label))
    if group is not None:
        rows = with_groups(rows, group, folder)
    training, held_out = split_films(
        films_of(rows),
        holdout=holdout,
        holdout_list=None if holdout_list is None else Path(holdout_list),
        seed=recipe.seed,
    )
    labels = tuple(sorted({span.label for film in training for span in film.spans}))
    return FilmData(labels, training, held_out, folder)


def read_split(run: RunFolder, *, root: str | Path | None = None) -> list[Annotation]:
    """The rows that a run was begun with; see `tasks.run.read_split`."""
    sides = {"train": run.train, "val": run.held_out}
    return [
        replace(row, split=side)
        for side, manifest in sides.items()
        if side == "train" or manifest.is_file()
        for row in find_videos(manifest, root=root)
    ]


def _source(model: str | Path | nn.Module) -> str | None:
    """What names the video model, from whatever folder."""
    if not isinstance(model, str | Path):
        return None
    return os.path.abspath(model) if os.path.exists(model) else str(model)


def _begin(
    run: RunFolder,
    stack: ExitStack,
    films: FilmData,
    recipe: LocaliserRecipe,
    video: UniFormerV2,
    *,
    checkpoint: str | None,
    resume: bool,
) -> None:
    """Lock the folder until the stack ends, and write what the run is given; only the same may be resumed."""
    stack.enter_context(run.locked())
    facts: dict[str, Any] = {"task": SPAN_TASK, "video_model": weights_digest(video), "video_checkpoint": checkpoint}
    facts |= {"localiser": asdict(recipe), "optimization": asdict(recipe.optimization())}
    sides = {run.train: films.training, run.held_out: films.held_out}
    manifests = {file: manifest_text(side, films.root) for file, side in sides.items() if side}
    run.start({run.recipe: json.dumps(facts, indent=2) + "\n", **manifests}, resume=resume)
    note_root(films.root, manifests)
    stack.enter_context(reporting_device_failures(run.path, LESS_MEMORY))


class Embedded(NamedTuple):
    """The films of a run with their embeddings."""

    training: Sequence[EmbeddedFilm]
    held_out: Sequence[EmbeddedFilm]


def _embedded(
    run: RunFolder, films: FilmData, cache: EmbeddingCache | OpenedFilms, *, workers: int, progress: bool
) -> Embedded:
    """The films with their embeddings; says what is strange about spans, and a line each on data and run."""
    sides = (films.training, films.held_out)
    found = Embedded(*(cache.fill(side, workers=workers, progress=progress) for side in sides))
    counts = [f"{len(side)} films with {sum(len(film.spans) for film in side)} spans" for side in found]
    lines = [
        *strange_spans([*films.training, *films.held_out], [*found.training, *found.held_out]),
        f"data: {counts[0]} of {len(films.labels)} labels to train on, {counts[1]} held out",
        f"training: {sum(film.windows for film in found.training)} windows on {model_device(cache.model)}; "
        f"run folder {run.path}",
    ]
    say("\n".join(lines), progress=progress)
    return found


def build_trainer(
    run: RunFolder,
    video: UniFormerV2,
    labels: tuple[str, ...],
    recipe: LocaliserRecipe,
    films: Embedded,
    *,
    skipped: dict[str, Unreadable],
    workers: int,
    progress: bool = False,
    **options: Any,
) -> tuple[Trainer, LocalisationTask]:
    """A trainer of a new head, alone or with the video model, and its task.

    Args:
        run, video, labels, recipe, films: what it is made of.
        skipped: receives films that cannot be read during the training.
        workers: processes that read held-out films.
        progress, options: of `Trainer`.
    """
    torch.manual_seed(recipe.seed)
    model: nn.Module = (head := build_head(video, recipe, labels).to(model_device(video)))
    classes = {label: number for number, label in enumerate(labels)}
    stretches: Any = {name: getattr(recipe, name) for name in ("crop_windows", "batch_size", "seed")}
    if recipe.video_lr:
        model = EndToEnd(video, head, lr_scale=recipe.video_lr / recipe.lr)
        unread: Any = {"skipped": skipped, "progress": progress}
        frames: Any = {"recipe": recipe, "preprocessing": video.preprocessing, **unread}
        task: LocalisationTask = EndToEndTask(recipe, labels, films.training, films.held_out, workers=workers, **unread)
        loader: FilmLoader = ClipLoader(films.training, classes, **stretches, **frames)
    else:
        task = LocalisationTask(recipe.head, labels, films.training, films.held_out)
        loader = FilmLoader(films.training, classes, **stretches)

    def save(trained: Any, path: Path) -> None:
        tuned, found = (trained.video, trained.head) if isinstance(trained, EndToEnd) else (video, trained)
        save_localiser(LocaliserModel(tuned, found, labels, recipe), path)

    optimization = recipe.optimization()
    trainer = Trainer(
        model, task, loader, optimization, run=run, save=save, recipe=asdict(recipe), progress=progress, **options
    )
    return trainer, task


def _result(run: RunFolder, found: LocalisationResult | None, skipped: Mapping[str, Unreadable]) -> LocaliserResult:
    history = tuple(record for record in read_metrics(run.metrics) if record["kind"] == "epoch")
    best = run.best if run.best.is_file() else None
    return LocaliserResult(run.last, best, found, history, tuple(skipped.values()))


def _measure(
    trainer: Trainer,
    task: LocalisationTask,
    run: RunFolder,
    held_out: Sequence[Film],
    skipped: Mapping[str, Unreadable],
) -> LocalisationResult | None:
    """The result of the run, which is written into its folder."""
    with trainer.step.evaluated() as head:
        found = task.measure(head)
    if found is not None:
        unread = [skipped.get(str(film.path)) for film in held_out]
        found = replace(found, skipped=tuple(video for video in unread if video is not None))
        with run.saving(run.evaluation):
            write_text(run.evaluation, json.dumps(found.to_json(), indent=2) + "\n")
    return found
