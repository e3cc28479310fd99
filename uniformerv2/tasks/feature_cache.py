"""Cached backbone features of the training clips, for a backbone that is frozen: computed once and kept on disk.

A clip that comes again must be the same clip (`fixed_views`), and the image transformer must not change while the run
learns: in a training, local UniBlocks, which stand inside its blocks, learn too. Then only the global stages and the
head are left to compute in an epoch.
"""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Unreadable
from uniformerv2.data.dataset import VideoDataset
from uniformerv2.data.loader import Sample, SampleKey, VideoLoader
from uniformerv2.data.order import EpochSampler
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.measuring.digests import tensors_digest, videos_digest
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.progress import say, track
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.train.precision import autocast
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import locked

CACHE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# fields of ModelConfig that the features of a frozen backbone do not depend on
OF_THE_REST = (
    *("num_classes", "head_dropout", "mix_class_token", "fusion", "num_queries", "local_mixing"),
    *("global_mlp_ratio", "global_dropout", "global_drop_path", "drop_path", "checkpoint_blocks"),
)


class FeatureLayout:
    """How the output of `UniFormerV2.encode` lies in a row of numbers: the stages, then the frame embeddings."""

    def __init__(self, model: UniFormerV2) -> None:
        config, (height, width) = model.config, model.preprocessing.size
        frames = model.preprocessing.num_frames
        if config.temporal_downsample:
            frames = math.ceil(frames / 2)
        self.tokens = TokenLayout(int(config.class_token), (height // config.patch_size, width // config.patch_size))
        stage = torch.Size((frames, self.tokens.spatial_tokens, config.width))
        self._shapes = [stage] * len(config.global_after) + [torch.Size((frames, config.width))]

    @property
    def numbers(self) -> int:
        """Of a clip."""
        return sum(shape.numel() for shape in self._shapes)

    def pack(self, encoded: EncodedFrames) -> Tensor:
        """To (batch, numbers), without the register tokens, which the global stages do not look at."""
        stages = [tokens[:, :, : self.tokens.spatial_tokens].flatten(1) for tokens in encoded.stages]
        return torch.cat([*stages, encoded.frame_embeddings.flatten(1)], dim=1)

    def unpack(self, numbers: Tensor) -> EncodedFrames:
        """From (batch, numbers)."""
        parts = numbers.split([shape.numel() for shape in self._shapes], dim=1)
        *stages, frames = (part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True))
        return EncodedFrames(tuple(stages), frames, self.tokens)


class FeatureCache:
    """The features of all fixed views of a run: a file for each view, which appears whole or not at all.

    What decides them names their folder, so runs that differ in nothing else share them, and a run that was killed goes
    on where it was. In a process group the work is shared out, and all processes need the same folder.

    Args:
        model: whose backbone is frozen, on the device that computes.
        recipe: resolved; asks for the cache.
        loader: batches of a `VideoDataset`, in the order of an `EpochSampler`.
        folder: of the caches of any number of runs.

    Raises:
        RecipeError: the model has local UniBlocks that are trained.
    """

    def __init__(self, model: UniFormerV2, recipe: Recipe, loader: VideoLoader, folder: Path) -> None:
        if model.config.local_blocks != "none" and any(part.requires_grad for part in model.backbone.parameters()):
            raise RecipeError(
                "cache_features needs a model without local UniBlocks, which are trained inside the frozen blocks: "
                "take layout scene, local_blocks none, or cache_features none"
            )
        assert isinstance(loader.dataset, VideoDataset)
        assert isinstance(loader.sampler, EpochSampler)
        self.model, self.loader = model, loader
        self.videos, self.order = loader.dataset, loader.sampler
        self.layout = FeatureLayout(model)
        self.precision = recipe.optimization.precision
        self.format = recipe.model.cache_features
        self.dtype = CACHE_DTYPES[self.format]
        fixed = recipe.augmentation.fixed_views
        # a row that comes again in an epoch has a later view
        self.views = fixed if self.order.weights else min(fixed, recipe.optimization.epochs)
        self.folder = folder / self._digest()

    def _digest(self) -> str:
        """Of everything that decides the features; row and draw, which tell the views apart, name their files."""
        drawn = self.videos.augmentation  # None: the view of an evaluation
        augmentation = None if drawn is None else {**asdict(drawn), "fixed_views": None}
        if augmentation:
            for name in ("flip_labels", "reverse_labels"):
                del augmentation[name]  # the numbers of the classes, which the files hold, depend on more
        labels = [self.videos.labels, self.videos.mirrored_classes] if self.videos.labels_each_view else []
        labels += [self.videos.reversed_classes] if self.videos.reversed_classes else []
        config = {name: value for name, value in asdict(self.model.config).items() if name not in OF_THE_REST}
        facts = [config, asdict(self.model.preprocessing), augmentation, self.precision, self.format, *labels]
        return tensors_digest(self.model.backbone.state_dict(), [*facts, videos_digest(self.videos.annotations)])

    def fill(self, task: VideoTask, *, progress: bool = False) -> VideoLoader:
        """Compute what is missing.

        Args:
            task: reports what cannot be read; its `unpack` becomes that of the features.
            progress: whether to name the size, before anything is written, and to show a bar.

        Returns:
            The loader of the features, in the place of the one of the clips.

        Raises:
            RecipeError: too little room, another process fills the same folder, or numbers that the format cannot hold.
            CheckpointError: a file cannot be written.
            VideoError: too many videos cannot be read.
        """
        ranks = current_ranks()
        with ExitStack() as stack:

            def begin() -> list[list[tuple[int, int]]]:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    what = f"{self.folder}: cannot be written to ({error.strerror}); choose another folder"
                    raise CheckpointError(what) from error
                stack.enter_context(locked(self.folder / ".lock"))
                for partial in self.folder.glob(".*.partial"):  # of processes that were killed while they wrote
                    partial.unlink(missing_ok=True)
                missing = self._missing()
                self._announce(missing, progress)
                return missing

            missing = ranks.on_rank_zero(begin)
            shares = [keys[ranks.rank :: ranks.world] for keys in missing]
            found = ranks.on_all_ranks(lambda: [self._compute(keys, task, progress) for keys in shares])
        unreadable = {row: video for views in found for view in views for row, video in view.items()}
        task.unpack = self.layout.unpack
        return replace(self.loader, dataset=CachedFeatures(self.videos, self.folder, self.layout, unreadable))

    def _missing(self) -> list[list[tuple[int, int]]]:
        """Keys by view, each view in the order of the rows."""
        views = [[self.order.key(row, epoch) for row in range(len(self.videos))] for epoch in range(1, self.views + 1)]
        return [[key for key in keys if not _is_whole(_file(self.folder, key))] for keys in views]

    def _announce(self, missing: list[list[tuple[int, int]]], progress: bool) -> None:
        """Say what will be written and where. Raises RecipeError where that is too much."""
        wanted = sum(map(len, missing))
        size = self.videos.repeats * self.layout.numbers * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        what = (
            f"features of {wanted} of {self.views * len(self.videos)} views, {size / 1e6:.3g} MB each in "
            f"{self.format}, need {wanted * size / 1e9:.3g} GB in {self.folder}"
        )
        if wanted * size > free:
            raise RecipeError(
                f"{what}, but {free / 1e9:.3g} GB are free there: make room, choose another folder, or take fewer "
                "fixed_views, cache_features fp16 or none"
            )
        say(f"{what}; {free / 1e9:.3g} GB are free", progress=progress)

    def _compute(self, keys: list[tuple[int, int]], task: VideoTask, progress: bool) -> dict[int, Unreadable]:
        """Encode and write one view of these rows; returns the reason for every row that could not be read."""
        draws = dict(keys)
        loader = replace(self.loader, sampler=keys)
        for batch in track(loader, "encoding", progress=progress):
            task.report(batch)
            if not len(batch):
                continue
            for row, features, labels in zip(batch.indices, self._encode(batch.clips), batch.labels, strict=True):
                self._write(_file(self.folder, (row, draws[row])), features, labels)
        return loader.unreadable

    @torch.no_grad()
    def _encode(self, clips: Tensor) -> Tensor:
        """(videos, views, 3, frames, height, width) -> (videos, views, numbers)."""
        self.model.eval()
        device = model_device(self.model)
        with autocast(self.precision, device):
            encoded = self.model.encode(clips.flatten(0, 1).to(device, non_blocking=True))
        return self.layout.pack(encoded).to(self.dtype).unflatten(0, clips.shape[:2]).cpu()

    def _write(self, file: Path, features: Tensor, labels: Tensor) -> None:
        """Features (views, numbers), and the labels (views) where the augmentation changes them."""
        if not features.isfinite().all():
            raise RecipeError(
                f"{file}: a feature is not finite in {self.format}; take cache_features "
                f"{'fp32' if self.format == 'fp16' else 'none'}"
            )
        try:
            with whole_file(file) as partial:
                of_views = {"labels": labels.cpu().clone()} if self.videos.labels_each_view else {}
                save_file({"features": features.contiguous(), **of_views}, partial)
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(self.folder).free
            raise CheckpointError(
                f"{file}: could not be written ({str(error).splitlines()[0]}; {free / 1e6:.0f} MB are free there); "
                "make room and continue with --resume"
            ) from error


class CachedFeatures:
    """Training views as numbers of a `FeatureLayout`, from disk, in the place of their clips.

    Args:
        videos: whose views they are.
        folder: of their files.
        layout: of the numbers.
        unreadable_rows: by row, the videos that could not be read.
    """

    def __init__(
        self, videos: VideoDataset, folder: Path, layout: FeatureLayout, unreadable_rows: dict[int, Unreadable]
    ) -> None:
        self.videos, self.folder, self.unreadable_rows = videos, folder, unreadable_rows
        self.clips_shape = (videos.repeats, layout.numbers)

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, key: SampleKey, *, out: Tensor | None = None) -> Sample:
        """The features of one view, float32 (views, numbers); see `VideoDataset.read`."""
        row = key[0] if isinstance(key, tuple) else key
        sample = Sample(index=row, path=str(self.videos.annotations[row].path), label=self.videos.label_of(row))
        if row in self.unreadable_rows:
            sample.error = self.unreadable_rows[row].reason
            return sample
        file = _file(self.folder, key)
        try:
            saved = load_file(file)
        except (OSError, SafetensorError) as error:
            return self.unreadable(key, f"its features cannot be read ({file}: {error})")
        sample.clips = (torch.empty(self.clips_shape) if out is None else out).copy_(saved["features"])
        if "labels" in saved:
            sample.label = saved["labels"].tolist()
        return sample

    def unreadable(self, key: SampleKey, reason: str) -> Sample:
        """See `VideoDataset.unreadable`."""
        return self.videos.unreadable(key, reason)


def _file(folder: Path, key: SampleKey) -> Path:
    row, draw = key if isinstance(key, tuple) else (key, 0)
    return folder / f"{row}-{draw:08x}.safetensors"


def _is_whole(file: Path) -> bool:
    """Not so after a loss of power, which may cut off a file that was complete."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
