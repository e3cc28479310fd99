"""An attentive probe of a frozen backbone: many settings trained in one pass over cached tokens, the best one kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import VideoLoader
from uniformerv2.data.manifest import note_root, write_manifest
from uniformerv2.data.order import EpochSampler
from uniformerv2.data.sources import Classes
from uniformerv2.device import model_device, pick_device
from uniformerv2.errors import AnnotationError, RecipeError, VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.metrics import cross_entropy, top_k_accuracy
from uniformerv2.model.uniblocks import GlobalUniBlock
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.probing.fitting import Scores, fit, score
from uniformerv2.probing.recipe import ProbeRecipe, Setting
from uniformerv2.probing.stacked import unstack
from uniformerv2.progress import say
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.feature_cache import FeatureCache
from uniformerv2.tasks.run import TrainingData, split_data
from uniformerv2.tasks.start import training_loader
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.train.recipe import AugmentationOptions, ModelRecipe, Optimization, Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.weights.checkpoint import save_model
from uniformerv2.weights.loading import arm, load_model

WARMUP = 0.1  # of the epochs


@dataclass(frozen=True)
class TriedSetting:
    """A setting, and how good its probe is on the held-out videos; None where it has diverged."""

    learning_rate: float
    weight_decay: float
    top1: float | None
    loss: float | None  # cross entropy

    @property
    def order(self) -> tuple[float, float]:
        """The first is the best: the highest accuracy, and of equal ones the lowest loss."""
        return (1.0, 0.0) if self.top1 is None or self.loss is None else (-self.top1, self.loss)


@dataclass(frozen=True)
class Probed:
    """A finished probe."""

    checkpoint: Path  # an ordinary model, with the best setting
    best: TriedSetting  # chosen on the held-out videos, so its figures are better than those of unseen ones would be
    tried: tuple[TriedSetting, ...]  # all of them, rate by rate
    videos: int  # held-out ones, that could be read
    skipped: tuple[Unreadable, ...]  # one for each path, of all videos


def probe(
    data: str | Path | Sequence[Annotation],
    recipe: ProbeRecipe,
    output: str | Path,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    device: str = "auto",
    workers: int = WORKERS,
    overwrite: bool = False,
    progress: bool = False,
    feature_cache: str | Path | None = None,
) -> Probed:
    """Train global stages and a head on the tokens of a frozen backbone, with many learning rates and weight decays.

    So V-JEPA 2 is evaluated (arXiv:2506.09985). The tokens of a few views of each video are computed once and kept on
    disk; a probe that was killed, or has other settings, finds them there. All settings see the same batches and share
    the work on the tokens, so that many cost little more than one. The position encodings of the global stages are not
    trained (see `stacked`): without `temporal_differences` they are zero, and the probe does not know the order of
    frames that the backbone encodes one by one.

    Args:
        data, root, classes, holdout, holdout_list, group, device, workers, progress: as of `train_classifier`.
            Something has to be held out.
        recipe: everything else that the result depends on. Local UniBlocks of a checkpoint stay as they are.
        output: folder for probe.json, best.safetensors, train.csv and held_out.csv (docs/training.md).
        overwrite: replace a former probe.
        feature_cache: folder of cached tokens that probes and trainings can share; None: "features" in `output`.

    Raises:
        RecipeError: impossible options, a folder that must not be touched or is in use, too little room for the tokens,
            or no setting that has not diverged.
        AnnotationError: fewer than two classes on either side of the split; or as `train_classifier`.
        CheckpointError: what is probed cannot be read, or a file cannot be written.
        VideoError: too many videos cannot be read.
    """
    run = RunFolder(output)
    _check_folder(run, overwrite)
    common = _training_recipe(recipe)
    videos = split_data(
        data, common, task="classification", root=root, classes=classes, holdout=holdout, holdout_list=holdout_list,
        group=group,
    )  # fmt: skip
    _check_held_out(videos)
    torch.manual_seed(recipe.seed)
    model = probed_model(recipe, videos.labels).to(pick_device(device))
    say(_announcement(model, recipe, videos, run), progress=progress)
    with run.locked():
        folder = Path(feature_cache or run.path / "features")
        tokens = _cached_tokens(model, common, videos, folder, workers=workers, progress=progress)
        probed = _fit_and_choose(model, recipe, common.optimization, tokens, run.best, progress=progress)
        _write(run, model, recipe, videos, probed)
    return probed


def probed_model(recipe: ProbeRecipe, labels: Sequence[str]) -> UniFormerV2:
    """A model with the backbone of the recipe's start, frozen, and a new probe for these labels.

    Raises:
        RecipeError: no such block, or another size than the start can have.
        CheckpointError: the start cannot be read.
    """
    options: Any = {"num_frames": recipe.num_frames, "size": recipe.size}
    try:
        if recipe.checkpoint is not None:
            source = load_model(recipe.checkpoint, labels=(), **options)
        else:
            source = arm(str(recipe.arm), num_classes=len(labels), **options)
        config = replace(
            source.config,
            global_after=recipe.global_after or (source.config.depth - 1,),
            num_classes=len(labels),
            num_queries=1,
            fusion="sequential",
            mix_class_token=True,
            global_drop_path=0.0,
            global_dropout=0.0,
            head_dropout=0.0,
        )
    except ValueError as error:
        raise RecipeError(f"no such model: {error}") from error
    model = UniFormerV2(config, source.preprocessing, labels)
    model.backbone.load_state_dict(source.backbone.state_dict())
    model.backbone.requires_grad_(False)
    model.loading_report = source.loading_report
    for block in model.global_blocks:
        assert isinstance(block, GlobalUniBlock)
        weight = block.position_encoding.weight.requires_grad_(False).zero_()
        if recipe.temporal_differences:  # (channels, 1, frames, rows, columns): half the frame after minus that before
            weight[:, 0, :, 1, 1] = torch.tensor([-0.5, 0.0, 0.5])
    return model.eval()


def rate_settings(settings: Sequence[Setting], scores: Scores) -> list[TriedSetting]:
    """Accuracy and loss of every setting.

    Raises:
        VideoError: no video could be read.
    """
    if not len(scores.labels):
        raise VideoError("not one of the held-out videos could be read, so no setting can be chosen")
    rated = []
    for setting, probabilities in zip(settings, scores.probabilities, strict=True):
        finite = bool(probabilities.isfinite().all())
        top1 = top_k_accuracy(probabilities, scores.labels) if finite else None
        loss = cross_entropy(probabilities, scores.labels) if finite else None
        rated.append(TriedSetting(*setting, top1, loss))
    return rated


def _training_recipe(recipe: ProbeRecipe) -> Recipe:
    """What the package's training knows of a probe: its split, its batches, its cache and its schedule."""
    return Recipe(
        ModelRecipe(
            arm=recipe.arm,
            checkpoint=recipe.checkpoint,
            frozen_backbone=True,
            cache_features=recipe.cache_features,
        ),
        optimization=Optimization(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            warmup_epochs=WARMUP * recipe.epochs,
            # factors of the settings' own
            lr=1.0,
            start_lr=0.0,
            end_lr=0.0,
            precision="fp32",
            seed=recipe.seed,
        ),
        augmentation=AugmentationOptions(flip=recipe.flip, fixed_views=recipe.fixed_views).build(),
    )


class _Tokens(NamedTuple):
    """Batches of tokens, and the task that knows how to unpack them and which videos could not be read."""

    training: VideoLoader
    held_out: VideoLoader  # one view of each video, the one of `evaluate`
    task: VideoTask


def _cached_tokens(
    model: UniFormerV2, recipe: Recipe, videos: TrainingData, folder: Path, *, workers: int, progress: bool
) -> _Tokens:
    task = Classification(recipe, model, training=videos.training, progress=progress)
    mirroring = task.mirroring(recipe.augmentation, model.labels)
    say("\n".join(mirroring.notes), progress=progress and bool(mirroring.notes))
    loader = training_loader(recipe, model, videos.training, workers=workers, mirrored_classes=mirroring.classes)
    training = FeatureCache(model, recipe, loader, folder).fill(task, progress=progress)
    dataset = VideoDataset(videos.held_out, model.labels, model.preprocessing)
    order = EpochSampler(len(dataset), seed=0, views=1)
    batch_size = recipe.optimization.batch_size
    loader = make_loader(dataset, batch_size=batch_size, workers=workers, device=model_device(model))
    cache = FeatureCache(model, recipe.vary(fixed_views=1), replace(loader, sampler=order), folder)
    held_out = replace(cache.fill(task, progress=progress), sampler=[order.key(row, 1) for row in range(len(dataset))])
    return _Tokens(training, held_out, task)


def _fit_and_choose(
    model: UniFormerV2,
    recipe: ProbeRecipe,
    optimization: Optimization,
    tokens: _Tokens,
    checkpoint: Path,
    *,
    progress: bool,
) -> Probed:
    """Train all settings, and give the model the best one."""
    shared: dict[str, Any] = {"unpack": tokens.task.unpack, "report": tokens.task.report}
    stacked = fit(model, tokens.training, recipe.settings, optimization, **shared, progress=progress)
    scores = score(model, stacked, tokens.held_out, **shared)
    tried = tuple(rate_settings(recipe.settings, scores))
    best = min(tried, key=lambda setting: setting.order)
    if best.top1 is None:
        raise RecipeError(f"all {len(tried)} settings have diverged; take lower learning_rates")
    unstack(model, stacked, tried.index(best))
    return Probed(checkpoint, best, tried, len(scores.labels), tuple(tokens.task.skipped.values()))


def _check_folder(run: RunFolder, overwrite: bool) -> None:
    """Whether the probe may write here. Raises RecipeError and touches nothing."""
    if run.path.exists() and not run.path.is_dir():
        raise RecipeError(f"{run.path}: not a folder; a probe needs a folder of its own")
    found = {file.name for file in run.path.iterdir() if file.name[0] != "."} if run.path.is_dir() else set()
    if found <= {"features"}:  # a killed probe leaves them
        return
    if "probe.json" not in found:
        raise RecipeError(f"{run.path}: holds other files and no probe; choose another folder")
    if not overwrite:
        raise RecipeError(f"{run.path}: has a probe; replace it with --overwrite, or choose another folder")


def _check_held_out(videos: TrainingData) -> None:
    if not videos.held_out:
        raise AnnotationError(
            f"nothing is held out of {len(videos.training)} videos, and the setting is chosen by held-out videos: give "
            "holdout, holdout_list or a split column"
        )
    if len({row.label for row in videos.held_out}) < 2:
        raise AnnotationError(
            f"the {len(videos.held_out)} held-out videos are all of class {videos.held_out[0].label!r}, by which no "
            "setting can be chosen: hold out more"
        )


def _announcement(model: UniFormerV2, recipe: ProbeRecipe, videos: TrainingData, run: RunFolder) -> str:
    clip, stages = model.preprocessing, ", ".join(map(str, model.config.global_after))
    return "\n".join(
        [
            f"data: {len(videos.training)} training videos of {len(videos.labels)} classes, "
            f"{len(videos.held_out)} held out",
            f"model: {recipe.start}, frozen, on {model_device(model)}; tokens after block {stages} of clips of "
            f"{clip.num_frames} frames, {clip.size[0]}x{clip.size[1]} pixels",
            f"probe: {len(recipe.settings)} settings, {recipe.epochs} epochs; folder {run.path}",
        ]
    )


def _write(run: RunFolder, model: UniFormerV2, recipe: ProbeRecipe, videos: TrainingData, probed: Probed) -> None:
    """Everything that a probe leaves; probe.json first, by which a folder is known as that of a probe."""
    skipped = [asdict(video) for video in probed.skipped]
    found = {
        "best": asdict(probed.best),
        "settings": [asdict(setting) for setting in probed.tried],
        "held_out_videos": probed.videos,
        "skipped": skipped,
        "recipe": asdict(recipe),
    }
    with run.saving(run.path):
        write_text(run.path / "probe.json", json.dumps(found, indent=2) + "\n")
        for file, rows in ((run.train, videos.training), (run.held_out, videos.held_out)):
            write_manifest(file, (replace(row, split=None) for row in rows), root=videos.root)
        note_root(videos.root, [run.train, run.held_out])
        save_model(model, run.best, origin=f"a probe of {recipe.start}")
