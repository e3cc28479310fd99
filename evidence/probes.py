"""A cell that is not trained but probed: the tokens of its frozen image transformer are read by an attentive probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evidence.cells import Cell, recipe_of, views
from uniformerv2 import Annotation, Evaluation, UniFormerV2, evaluate, load_model, probe, save_model
from uniformerv2.data.annotations import Unreadable
from uniformerv2.probing.recipe import ProbeRecipe

HELD_OUT = 0.25  # of the training videos, whole people, by which the setting is chosen


def fit_probe(
    start: UniFormerV2, rows: Sequence[Annotation], cell: Cell, work: Path, device: str = "cpu"
) -> tuple[UniFormerV2, Evaluation, Sequence[Unreadable]]:
    """Try all settings on training people alone, and test the best one.

    Returns:
        The model, its evaluation on the test videos, and training videos that could not be read.
    """
    save_model(start, work / "start.safetensors")
    usual = recipe_of(cell, work / "start.safetensors")
    recipe = ProbeRecipe(
        checkpoint=str(work / "start.safetensors"),
        num_frames=usual.clip.num_frames,
        size=usual.clip.size,
        batch_size=usual.optimization.batch_size,
        flip=usual.augmentation.flip > 0,
        seed=cell.seed,
        **(cell.probe or {}),
    )
    training = [replace(row, split=None) for row in rows if row.split == "train"]
    probed = probe(training, recipe, work / "probe", holdout=HELD_OUT, device=device, workers=0)
    model = load_model(probed.checkpoint)
    tested = [row for row in rows if row.split == "test"]
    return model, evaluate(model, tested, views=views(cell), workers=0, device=device, split="all"), probed.skipped
