"""What a training ends with when its device fails: a line that says how it goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uniformerv2.distributed import current_ranks
from uniformerv2.errors import ProcessError, RecipeError
from uniformerv2.train.recipe import Recipe

INTACT = "what was saved before is intact"
_ON_CPU = "DefaultCPUAllocator: "


@contextmanager
def reporting_device_failures(run: object, recipe: Recipe | str) -> Iterator[None]:
    """Around a training: memory that is out is a RecipeError, a device that has gone a ProcessError, in a line.

    Nothing is saved then, as the step may be half done; the files and states of the run stay as they are.

    Args:
        run: what is broken off, for the message.
        recipe: that is trained; or, in words, what takes less memory.
    """
    try:
        yield
    except RuntimeError as error:
        # of torch's text the first sentences: where the memory is, and the advice for programmers, follow
        reason = ". ".join(" ".join(str(error).split()).split(_ON_CPU)[-1].split(". ")[:2])
        if isinstance(error, torch.OutOfMemoryError) or _ON_CPU in str(error):
            problem: RecipeError | ProcessError = RecipeError(f"{run}: {reason}; {INTACT}: {_with_less_memory(recipe)}")
        elif isinstance(error, getattr(torch, "AcceleratorError", ())) or reason.startswith("CUDA error"):
            problem = ProcessError(f"{run}: the device has failed ({reason}); {INTACT}: continue with --resume")
        else:
            raise
        if not current_ranks().first:  # whose errors nobody prints
            warnings.warn(str(problem), stacklevel=2)
        raise problem from error


def _with_less_memory(recipe: Recipe | str) -> str:
    if isinstance(recipe, str):
        return recipe
    optimization, repeats, world = recipe.optimization, recipe.augmentation.repeats, current_ranks().world
    clips = optimization.batch_size // (world * optimization.accumulate)
    if clips == repeats:
        return (
            f"{clips} clips at once are the fewest; start another run with a smaller model, --size or --num-frames, "
            "or more --checkpoint-blocks"
        )
    most = optimization.batch_size // (world * repeats)
    parts = next(parts for parts in range(2 * optimization.accumulate, most + 1) if most % parts == 0)
    return (
        f"{clips} clips at once are too many; continue with --resume --accumulate {parts}, which takes the same steps "
        f"in smaller parts, or start another run with a smaller --batch-size than {optimization.batch_size}; "
        "uniformerv2 rehearse batch-size finds what fits"
    )
