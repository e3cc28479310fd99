"""The augmentation of training clips, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from uniformerv2.text import words

Words = tuple[str, ...]  # of a name, as they are compared
REVERSED = 0.5  # share of the clips of the classes in `reverse_labels` that are played backwards


@dataclass(frozen=True)
class Augmentation:
    """How training clips are augmented. The defaults are the released recipe, rand-m7-n4-mstd0.5-inc1.

    As there, mixing, erasing and colour jitter are not part of it.
    """

    num_ops: int = 4  # RandAugment operations drawn for a clip, with replacement; 0 turns RandAugment off
    magnitude: float = 7.0  # mean strength of an operation, 0 to 10
    magnitude_std: float = 0.5  # every operation draws its own strength
    op_probability: float = 0.5  # that a drawn operation is applied
    crop_area: tuple[float, float] = (0.08, 1.0)  # share of the frame that the crop keeps
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # the crop's width / height, relative to the clip's
    flip: float = 0.5  # probability of a mirrored clip; 0 where left and right matter (Something-Something)
    flip_labels: str = "none"
    """Words that change places in the label of a mirrored clip, such as "left,right" or "left,right;west,east"; auto:
    found from the names of the classes; none: a mirrored clip keeps its label."""
    reverse_labels: str = "none"
    """Pairs of classes that are each other played backwards, such as "sit_down,stand_up;open,close" or "wave,wave".
    Half of their training clips are played so, with the label of the other. none: no clip is."""
    short_side: int = 320  # pixels; frames with a longer short side are first resized to it, to save time
    repeats: int = 1  # clips of each decoded video in a batch, each with frames and distortions of its own
    erasing: float = 0.0  # probability that a rectangle of the clip is erased
    mixup: float = 0.0  # alpha of the beta distribution of the share in which two clips are blended; 0: never
    cutmix: float = 0.0  # alpha of the same for the area that is pasted into another clip; 0: never
    fixed_views: int = 0  # random views of each video that are drawn once and take turns; 0: new ones in each epoch

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude must lie in 0 to 10, got {self.magnitude}")
        for name in ("num_ops", "magnitude_std", "mixup", "cutmix", "fixed_views"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("op_probability", "flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area must be (smallest, largest) above 0 and up to 1, got {self.crop_area}")
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise ValueError(f"crop_aspect must be (smallest, largest) above 0, got {self.crop_aspect}")
        for name in ("short_side", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.flip_labels not in ("auto", "none"):
            label_pairs(self.flip_labels)
            if not self.flip:
                raise ValueError(f"flip_labels {self.flip_labels} needs mirrored clips: turn flip on, or leave it out")


def label_pairs(text: str) -> list[tuple[Words, Words]]:
    """The pairs of `flip_labels`, such as [(("left",), ("right",))] of "left,right".

    Raises:
        ValueError: no pairs, or a word that stands in them twice.
    """
    pairs = [tuple(words(side) for side in pair.split(",")) for pair in text.split(";")]
    sides = [side for pair in pairs for side in pair]
    if any(len(pair) != 2 for pair in pairs) or not all(sides) or len(set(sides)) < len(sides):
        raise ValueError(
            "flip_labels must be auto, none or pairs of words, each word once, such as left,right;west,east, "
            f"got {text!r}"
        )
    return [(one, other) for one, other in pairs]
