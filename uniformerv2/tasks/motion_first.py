"""Motion first: before a model sees the user's videos, it is trained on drawn motions, which only order tells apart.

So its new temporal parts have learned what order is. The motions come in pairs that are each other played backwards
(`demo.motions`). They are drawn once and kept in the hub's cache, and so is what a start has learned from them, under a
digest of everything that it depends on.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from uniformerv2 import __version__
from uniformerv2.atomic import whole_folder, write_text
from uniformerv2.attention_choice import cache_file
from uniformerv2.demo.motions import MOTIONS, write_dataset
from uniformerv2.distributed import Ranks, current_ranks
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.machine import available_cores
from uniformerv2.measuring.digests import weights_digest
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.tasks.start import build_model, micro_batch
from uniformerv2.text import parse_json, short_digest
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import StateFolder
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views
from uniformerv2.weights.loading import load_model

# as in the demo
TRAIN_CLIPS, HELD_OUT_CLIPS = 300, 25  # of each motion
NUM_FRAMES = 8  # at most: no weight depends on the number of frames, and more cost more
EPOCHS, BATCH_SIZE = 3, 16
WARMUP = 0.05  # of the epochs
# left and right are classes here, and so are large and small
AS_DRAWN = Augmentation(num_ops=0, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
SIDES = (64, 96)  # shorter side of the drawings in pixels: the first for models that see no more; the loader resizes


def learn_motions(
    model: UniFormerV2, recipe: Recipe, run: RunFolder, *, train: Callable[..., Any], progress: bool = False
) -> None:
    """Give a model, but for its head, the weights that its start has after a training on drawn motions.

    Nothing happens unless the recipe asks for it, or where the run has a state to resume, which has all weights. What
    an equal start has learned before comes out of the cache. All ranks call this, and train together.

    Args:
        model: that the recipe starts from, on the device that computes; changed in place.
        recipe: resolved, without "auto".
        run: its folder, begun; receives motion_first.json with the accuracy on held-out motions.
        train: `train_model` for classification, with the device and whatever else the run is given.
        progress: whether to say what happens.

    Raises:
        RecipeError: the cache cannot be written to.
        UniFormerV2Error: as `train_classifier`.
    """
    ranks, learned = current_ranks(), dict[str, Tensor]()
    if not recipe.model.motion_first or ranks.on_rank_zero(lambda: StateFolder(run.states, Ranks()).newest is not None):
        return
    wanted = motion_recipe(recipe)
    kept = cache_folder() / ranks.on_rank_zero(lambda: _digest(wanted))
    with ExitStack() as stack:
        ranks.on_rank_zero(lambda: stack.enter_context(_alone(kept, progress=progress)))
        if not ranks.on_rank_zero(lambda: _read(kept, learned)):
            say(f"motion first: a training on clips of {len(MOTIONS)} drawn motions", progress=progress)
            _train(wanted, run, train, progress=progress)
            ranks.on_rank_zero(lambda: _keep(RunFolder(run.motions), kept))
            ranks.on_rank_zero(lambda: _read(kept, learned))
        ranks.on_rank_zero(lambda: _record(kept, run, progress=progress))
    _take_over(model, learned)


def motion_recipe(recipe: Recipe) -> Recipe:
    """How the start of a resolved recipe is trained on drawn motions.

    Start, model, pixels, learning rate and precision are the recipe's, and so is how many clips are computed at once;
    the rest is the demo's, without augmentation.
    """
    assert recipe.clip.num_frames is not None
    world, at_once = current_ranks().world, micro_batch(recipe)
    share = math.ceil(BATCH_SIZE / world)  # clips of a process in a step
    parts = next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= at_once)
    return recipe.vary(
        **{"motion_first": False, "map_head": False, "cache_features": "none"},
        **{"num_frames": min(recipe.clip.num_frames, NUM_FRAMES)},
        **{"epochs": EPOCHS, "warmup_epochs": WARMUP * EPOCHS, "evaluate_every": EPOCHS, "early_stop": 0},
        **{"batch_size": share * world, "accumulate": parts, "lr_base_batch": None, "monitor": "top1"},
        **{
            "loss": "cross-entropy",
            "label_smoothing": 0.0,
            "clip_norm": 1.0,
            "ema": 0.0,
            "class_weights": "none",
            "sampling": "none",
            "background": 0.0,
        },
        **asdict(AS_DRAWN),
        **asdict(Views()),
    )


def motion_clips() -> int:
    """How many clips a start is trained on."""
    return EPOCHS * TRAIN_CLIPS * len(MOTIONS)


def cache_folder() -> Path:
    """Of drawings and of what starts have learned: in the hub's cache, beside the downloads."""
    return cache_file().with_name("motions")


def draw_motions(size: tuple[int, int], *, progress: bool = False) -> Path:
    """The manifest of the drawn motions for clips of this height and width in pixels, drawn unless they are there.

    Raises:
        RecipeError: the cache cannot be written to.
    """
    side = SIDES[min(size) > SIDES[0]]
    height, width = (2 * round(side * length / min(size) / 2) for length in size)  # even, as H.264 wants them
    folder = cache_folder() / f"{height}x{width}-{TRAIN_CLIPS}+{HELD_OUT_CLIPS}-{__version__}"
    with _alone(folder, progress=progress):
        if not folder.is_dir():
            say(f"motion first: drawing {height}x{width} pixels into {folder}", progress=progress)
            with _writing(), whole_folder(folder) as partial:
                write_dataset(
                    partial,
                    train_clips=TRAIN_CLIPS,
                    held_out_clips=HELD_OUT_CLIPS,
                    size=(height, width),
                    processes=available_cores(),
                    progress=progress,
                )
    return folder / "manifest.csv"


def _train(wanted: Recipe, run: RunFolder, train: Callable[..., Any], *, progress: bool) -> None:
    """Train as `wanted` says, or go on with that, in the folder `motions` of the run."""
    ranks, size = current_ranks(), wanted.clip.height_width
    assert size is not None
    # each machine has a cache of its own
    manifest = ranks.on_all_ranks(lambda: draw_motions(size, progress=progress))[ranks.rank]
    begun = RunFolder(run.motions)
    there, same = ranks.on_rank_zero(
        lambda: (begun.path.is_dir(), begun.recipe.is_file() and begun.read_recipe() == wanted)
    )
    with redirect_stdout(sys.stderr):  # stdout has a line for each epoch of the run itself
        train(manifest, wanted, begun.path, resume=same, overwrite=there and not same)


def _digest(wanted: Recipe) -> str:
    """Of everything that a training depends on: its start as it is, not its name."""
    with torch.random.fork_rng([]):
        torch.manual_seed(wanted.optimization.seed)
        start = build_model(wanted, sorted(MOTIONS))
    facts = [weights_digest(start), wanted.model.frozen_backbone, asdict(wanted.optimization), SIDES]
    facts += [TRAIN_CLIPS, HELD_OUT_CLIPS, __version__]
    return short_digest(facts)


def _read(kept: Path, learned: dict[str, Tensor]) -> bool:
    """Fill in the weights that are kept; False where there are none, or damaged ones, which are removed."""
    if not kept.is_dir():
        return False
    try:
        learned |= load_model(RunFolder(kept).last).state_dict()
    except CheckpointError:
        shutil.rmtree(kept)
        return False
    return True


def _keep(finished: RunFolder, kept: Path) -> None:
    """Move a finished training into the cache, but for what is large and no longer needed."""
    with _writing(), whole_folder(kept) as partial:
        for file in (finished.recipe, finished.metrics, finished.evaluation, finished.last):
            shutil.copy2(file, partial)
    shutil.rmtree(finished.path)


def _record(kept: Path, run: RunFolder, *, progress: bool) -> None:
    evaluation = parse_json(RunFolder(kept).evaluation.read_text(encoding="utf-8"))
    record = {name: evaluation[name] for name in ("top1", "correct", "evaluated")} | {"kept": str(kept)}
    with run.saving(run.motion_first):
        write_text(run.motion_first, json.dumps(record, indent=2) + "\n")
    right = "{correct} of {evaluated} held-out clips of drawn motions right ({top1:.1%})".format(**record)
    say(f"motion first: {right}; kept in {kept}, for any run with this start", progress=progress)


@torch.no_grad()
def _take_over(model: UniFormerV2, learned: dict[str, Tensor]) -> None:
    """Rank zero's weights into the models of all ranks, but for those of the head."""
    ranks = current_ranks()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            tensor.copy_(learned[name]) if ranks.first else tensor.zero_()
            ranks.add_up(tensor)


@contextmanager
def _alone(entry: Path, *, progress: bool) -> Iterator[None]:
    """Be the only process that makes this entry of the cache, and remove what one that was killed has left of it."""
    lock = FileLock(f"{entry}.lock")
    with _writing():
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"motion first: waiting for the process that makes {entry}", progress=progress)
            lock.acquire()
    try:
        for partial in entry.parent.glob(f".{entry.name}.*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"{cache_folder()}: drawn motions cannot be written there ({error.strerror or error}); set HF_HUB_CACHE to "
            "another folder, or leave motion_first out"
        ) from error
