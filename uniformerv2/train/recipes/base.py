"""What a named recipe is, and what all published ones have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe, disagreements
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views
from uniformerv2.weights.zoo import ZooEntry, zoo_entry

VIT_TI = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
CLIP = {  # OpenAI's image encoders on the hub, by named size
    "B/16": "openai/clip-vit-base-patch16",
    "L/14": "openai/clip-vit-large-patch14",
    "L/14@336": "openai/clip-vit-large-patch14-336",
}

RELEASED = Recipe(
    ModelRecipe(arm=CLIP["B/16"], layout="scene", post_norm=False, global_dropout=0.5, head_dropout=0.5),
    ClipRecipe(num_frames=8, size=224, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), channel_order="rgb"),
    Optimization(
        epochs=55,
        batch_size=256,
        lr=1e-5,
        warmup_epochs=5.0,
        start_lr=1e-6,
        end_lr=1e-6,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_norm=20.0,
        label_smoothing=0.0,
        precision="fp16",
        seed=6666,
    ),
    Augmentation(),
    Views(clips=4, crops=3),
)
"""B/16 from CLIP on Kinetics, 8 frames of 224 pixels; the other published experiments vary it."""

DEFAULTS = Recipe(ModelRecipe(arm=VIT_TI))
"""What `train` does when nothing else is asked for; the recipes for data of one's own vary it."""


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe under the name of what it trains. Those of published models have their names in `weights.zoo`."""

    name: str
    recipe: Recipe
    gpus: int | None = None  # of the published run; how long it took was not published
    notes: tuple[str, ...] = ()  # where what was published contradicts itself, and what is taken here; what was tried

    @cached_property
    def published(self) -> ZooEntry | None:
        """What was published of the model; None for a recipe of ours."""
        return zoo_entry(self.name)

    @property
    def cost(self) -> str:
        """Such as "16 GPUs, 512 clips a step, 50 epochs"."""
        run = f"{self.recipe.optimization.batch_size} clips a step, {self.recipe.optimization.epochs} epochs"
        return f"{self.gpus} GPUs, {run}" if self.gpus else run

    @property
    def result(self) -> str:
        """Such as "top-1 84.4 % with views 8x3x4"; "" where nothing was published."""
        entry = self.published
        return f"top-1 {entry.top1} % with views {entry.views}" if entry and entry.top1 else ""

    def describe(self) -> list[str]:
        """For people: `lines`, and everything that differs from the recipe that it is derived from."""
        name, base = ("b16-k400-8x224", RELEASED) if self.published else ("own-small-vit", DEFAULTS)
        changes = disagreements([asdict(base), asdict(self.recipe)])
        if not changes:
            what = [f"{part}: {values}" for part, values in self.recipe.lines()]
            return [*self.lines(), "derived from no other:", *what]
        return [
            *self.lines(),
            f"changes of {name}:",
            *(f"  {field} {new} instead of {old}" for field, (old, new) in changes.items()),
        ]

    def lines(self) -> list[str]:
        """For people: cost and result as published, then the notes."""
        facts = f"published: {self.cost}; {self.result or 'no accuracy'}" if self.published else self.cost
        return [f"{self.name}: {facts}", *self.notes]
