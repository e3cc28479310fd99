"""What a clip that is played backwards shows: "sit down" backwards is "stand up".

The idea is that of Price and Damen, Retro-Actions, arXiv:1909.09422.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.mirroring import listed
from uniformerv2.tasks.video_task import Counterparts
from uniformerv2.text import normalised
from uniformerv2.video.augmentation import Augmentation


def find_reversing(augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
    """Which of these classes are each other played backwards; clips of the others never are.

    Args:
        augmentation: whose `reverse_labels` are pairs of whole names, or none.
        labels: names of the classes.

    Raises:
        RecipeError: no pairs, a name that no class has, or a class in two pairs.
    """
    asked = augmentation.reverse_labels
    if asked == "none":
        return Counterparts()
    numbers = {normalised(label): number for number, label in enumerate(labels)}
    pairs = _pairs(asked, numbers)
    others = {numbers[one]: numbers[other] for pair in pairs for one, other in (pair, pair[::-1])}
    changed = [f"{one!r} and {other!r}" for one, other in pairs if one != other]
    same = [repr(one) for one, other in pairs if one == other]
    notes = [f"{listed(changed)} change places where a clip is played backwards"] if changed else []
    notes += [f"clips of {listed(same)} are played backwards, too, and keep their label"] if same else []
    classes = tuple(others.get(number) for number in range(len(labels)))
    return Counterparts(asked, classes, tuple(f"reverse_labels: {note}" for note in notes))


def _pairs(asked: str, names: Collection[str]) -> list[tuple[str, str]]:
    """As they are compared. Raises RecipeError where they are not pairs of these names, each in one pair."""
    pairs = [tuple(normalised(name) for name in pair.split(",")) for pair in asked.split(";")]
    uses = Counter(name for pair in pairs for name in dict.fromkeys(pair))
    wrong = [f"{','.join(pair)!r} is no pair" for pair in pairs if len(pair) != 2]
    wrong += [f"no class is called {name!r}" for name in uses if name not in names]
    wrong += [f"{name!r} stands in {count} pairs" for name, count in uses.items() if count > 1]
    if wrong:
        raise RecipeError(
            f"reverse_labels {asked}: {wrong[0]}; it takes none or pairs of class names, each in one pair, such as "
            f"sit_down,stand_up;open,close, and the classes are {listed([repr(name) for name in names])}"
        )
    return [(one, other) for one, other in pairs]
