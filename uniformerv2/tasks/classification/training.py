"""Training a classifier from a folder of videos, or a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import Classes
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.results import Evaluation
from uniformerv2.tasks.run import TrainingResult, train_model
from uniformerv2.train.engine import SAVE_EVERY_SECONDS
from uniformerv2.train.log import LoggerName
from uniformerv2.train.parallel import Parallel
from uniformerv2.train.recipe import Recipe


def train_classifier(
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
) -> TrainingResult[Evaluation]:
    """Train a classifier. In a process group of torch.distributed all processes train one model, and return the same.

    Args:
        data: a folder with one folder per class, a manifest, shards, or annotations; see `read_annotations`.
        recipe: everything that the result depends on, but for the data.
        output: folder of the run, see `RunFolder`. Touched only once everything else is right.
        root, classes: as of `read_annotations`.
        holdout: share of each class's files that is held out, drawn with the recipe's seed; 0: nothing; None: 0.2, or
            nothing where that cannot be drawn, as when no class has two files. Then nothing is evaluated.
        holdout_list: file with a path or pattern per line: what is held out instead.
        group: regular expression that finds the source of a video (its first group, or all that it matches) in its path
            from the root; a drawn holdout has whole sources. None: what a column `group` says.
        device: "auto" (a GPU where there is one), or a name that torch knows.
        workers: processes that read videos; 0 reads in this one.
        resume: continue a killed run of the same recipe and data.
        overwrite: replace a former run.
        progress: whether to show a bar and notes on stderr, and a line per epoch on stdout.
        parallel: "ddp": each process has the whole model; "fsdp": weights, gradients and optimizer are sharded.
        save_every_seconds: what a killed run loses at most, however long an epoch is.
        loggers: "tensorboard" or "wandb" (Weights & Biases), each of which has to be installed.
        feature_cache: folder of cached features that runs can share; None: "features" in the folder of the run.

    Raises:
        RecipeError: contradicting values, a folder that must not be touched or is in use, a loss that is not finite.
        AnnotationError: data that do not say what is needed, such as a folder with one class.
        CheckpointError: a checkpoint or training state cannot be read, or a file of the run cannot be written.
        VideoError: too many videos cannot be read.
        ProcessError: another process of the group has ended.
        Terminated: after a SIGTERM; the run can be resumed. It is a SystemExit.
        KeyboardInterrupt: after Ctrl-C and the end of the step, with a line on how to go on.
    """
    try:
        return train_model(
            data, recipe, output, root=root, classes=classes, holdout=holdout,
            holdout_list=holdout_list, group=group, workers=workers,
            device=device, progress=progress, resume=resume, overwrite=overwrite, parallel=parallel,
            save_every_seconds=save_every_seconds, loggers=loggers, feature_cache=feature_cache,
        )  # fmt: skip
    except KeyboardInterrupt as told:
        raise told.with_traceback(None) from None  # without the frames of the loop
