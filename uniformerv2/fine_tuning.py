"""Fine-tuning in one call, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniformerv2.data.annotations import Annotation, class_names
from uniformerv2.data.sources import Classes, read_annotations
from uniformerv2.device import pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.results import Evaluation
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor, Video
from uniformerv2.predictions import Prediction
from uniformerv2.progress import say
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.tasks.rehearsal import find_batch_size
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.recipes import find_recipe
from uniformerv2.train.recipes.own import suited_recipe
from uniformerv2.train.run_folder import RunFolder, new_run_folder


@dataclass(frozen=True)
class FineTuned:
    """A model that was fine-tuned, and how good it is."""

    predictor: Predictor  # of the model after the last epoch
    evaluation: Evaluation | None  # of that model, on the held-out videos; None: nothing was held out
    recipe: Recipe  # that was run
    run: Path  # folder with checkpoints, curves and the split (docs/training.md)

    @property
    def model(self) -> UniFormerV2:
        """The plain model, on the device that computed: to save, train further, wrap or optimize."""
        return self.predictor.model

    def predict(self, video: Video, *, top_k: int | None = 5, threshold: float = 0.0) -> Prediction:
        """Rank the classes for one video; see `Predictor.predict`."""
        return self.predictor.predict(video, top_k=top_k, threshold=threshold)

    def __repr__(self) -> str:
        found = self.evaluation
        right = (
            f"{found.correct} of {len(found.videos)} held-out videos right ({found.top1:.1%})"
            if found
            else "nothing was held out"
        )
        return f"FineTuned({right}, {len(self.model.labels)} classes, run {str(self.run)!r})"


def fine_tune(
    data: str | Path | Sequence[Annotation],
    *,
    arm: str | Path | None = None,
    checkpoint: str | Path | None = None,
    recipe: str | None = None,
    output: str | Path | None = None,
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
    **changes: Any,
) -> FineTuned:
    """Fine-tune a video classifier on data of one's own, with a recipe that suits their number. Saves every minute.

    Args:
        data, root, classes, holdout, holdout_list, group, device, workers, overwrite, progress: of `train_classifier`.
        arm: image transformer to start from; None: that of the recipe.
        checkpoint: video model to start from instead.
        recipe: name of the recipe; None: one for data of one's own (docs/recipes.md), small, medium or large by the
            number of videos, for CLIP, DINOv2 or a supervised transformer by the name of `arm`.
        output: folder of the run; None: named after the data, a new one each time.
        resume: go on with the run in `output`, whose recipe is taken; `data` are those of then.
        changes: other values of fields of the recipe: `epochs=5, lr=1e-4, flip=False`. Unless they are given, the
            learning rate follows the batch size, the warm-up the epochs, and `accumulate` what a GPU's memory holds.

    Raises:
        RecipeError: a field that no recipe has, impossible values, or a folder that must not be touched.
        UniFormerV2Error: as `train_classifier`.
        KeyboardInterrupt: after Ctrl-C and the end of the step, with a line on how to go on.
    """
    if resume and output is None:
        raise RecipeError("resume needs the folder of the run: give output")
    annotations = read_annotations(data, root=root, classes=classes)
    starts = {name: str(value) for name, value in (("arm", arm), ("checkpoint", checkpoint)) if value is not None}
    name = recipe or suited_recipe(len(annotations), arm=arm, checkpoint=checkpoint)
    chosen = _varied(find_recipe(name).recipe, starts, changes)
    run = RunFolder(output if output is not None else new_run_folder(data))
    found = f"{len(annotations)} videos of {len(class_names(annotations, minimum=2))} classes"
    say(f"{found}: recipe {name}, run folder {run.path}", progress=progress)
    run.check(resume=resume, overwrite=overwrite)
    chosen = _begun(run, starts, changes) if resume else _fitting(annotations, chosen, device, progress)
    try:
        result = train_classifier(
            data, chosen, run.path, root=root, classes=classes, holdout=holdout, holdout_list=holdout_list, group=group,
            workers=workers, device=device, progress=progress, resume=resume, overwrite=overwrite,
            save_every_seconds=60.0,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.how_to_go_on()) from None
    predictor = Predictor(result.last, device=device, views=chosen.evaluation)
    return FineTuned(predictor, result.evaluation, chosen, run.path)


def _varied(recipe: Recipe, starts: Mapping[str, str], changes: Mapping[str, Any]) -> Recipe:
    """The recipe with another start and other values, and what follows from them."""
    before = recipe.optimization
    implied: dict[str, Any] = {}
    implied["lr_base_batch"] = None if "lr" in changes else before.lr_base_batch or before.batch_size
    if "epochs" in changes and "warmup_epochs" not in changes:
        recipe = recipe.lasting(changes["epochs"])
    return recipe.starting_from(**starts).vary(**{**implied, **_with_flips(changes)}).resolved()


def _begun(run: RunFolder, starts: Mapping[str, str], changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a run that goes on, with what is given: a difference is refused when the run begins."""
    return run.read_recipe().vary(**starts, **_with_flips(changes)).resolved()


def _with_flips(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe has the probability."""
    return {**changes, "flip": 0.5} if changes.get("flip") is True else dict(changes)


def _fitting(annotations: Sequence[Annotation], recipe: Recipe, device: str, progress: bool) -> Recipe:
    """The recipe with its batch divided as a GPU's memory demands; without a GPU, trying would take too long."""
    if pick_device(device).type != "cuda" or recipe.optimization.accumulate > 1:
        return recipe
    sizes = find_batch_size(annotations, recipe, device=device, largest=recipe.optimization.batch_size)
    say("\n".join(sizes.lines()), progress=progress)
    return recipe.vary(accumulate=sizes.accumulate)
