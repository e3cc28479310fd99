"""What a mirrored clip shows, by the names of the classes: a mirrored "push left" is a "push right"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from uniformerv2.errors import RecipeError
from uniformerv2.tasks.video_task import Counterparts
from uniformerv2.text import words
from uniformerv2.video.augmentation import Augmentation, Words, label_pairs

KNOWN_PAIRS = (  # what mirroring exchanges, whoever looks; of pairs that share a word, the first that is found counts
    *("left,right", "leftward,rightward", "leftwards,rightwards", "clockwise,counterclockwise"),
    *("clockwise,anticlockwise", "clockwise,counter-clockwise", "clockwise,anti-clockwise"),
)
SHOWN = 5  # classes in a line


def find_mirroring(augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
    """What mirroring changes about these classes.

    Words are compared whole and in any case, also in snake_case and CamelCase; where both of a pair stand in a name,
    they change places.

    Args:
        augmentation: whose `flip_labels` are pairs of words, auto or none.
        labels: names of the classes.

    Raises:
        RecipeError: no class has a word of a pair that is asked for.
    """
    if not augmentation.flip:
        return Counterparts()
    asked = augmentation.flip_labels
    pairs = _found_pairs(labels) if asked in ("auto", "none") else asked
    if not pairs:
        return Counterparts()
    names = [words(label) for label in labels]
    others = [_swapped(name, label_pairs(pairs)) for name in names]
    if asked == pairs:
        _check_used(pairs, names)
    counts = Counter(names)  # "turn left" and "turn_left" are two classes of one name, which is no counterpart
    numbers = {name: number for number, name in enumerate(names) if counts[name] == 1}
    classes = tuple(
        number if name == other else numbers.get(other)
        for number, (name, other) in enumerate(zip(names, others, strict=True))
    )
    changed = [
        f"{labels[one]!r} and {labels[other]!r}"
        for one, other in enumerate(classes)
        if other is not None and other > one
    ]
    if asked == "none":
        hint = "mirrored clips keep their labels; flip_labels auto exchanges them, without flip none is mirrored"
        return Counterparts(notes=(f"{listed(changed)}: {hint}",))
    alone = [
        f"{label!r} has no {' '.join(other)!r}"
        for label, other, number in zip(labels, others, classes, strict=True)
        if number is None
    ]
    notes = [f"flip_labels {pairs}: a mirrored clip has the label of the other of {listed(changed)}"] if changed else []
    notes += [f"{listed(alone)}: clips of such a class are not mirrored"] if alone else []
    return Counterparts(pairs, classes, tuple(notes))


def _found_pairs(labels: Sequence[str]) -> str:
    """The known pairs that tell two of the classes apart, as a recipe has them."""
    names, found = {words(label) for label in labels}, list[str]()
    for pair in KNOWN_PAIRS:
        swap = label_pairs(pair)
        exchanged = any(name != (other := _swapped(name, swap)) and other in names for name in names)
        if exchanged and not any(set(pair.split(",")) & set(known.split(",")) for known in found):
            found.append(pair)
    return ";".join(found)


def _swapped(name: Words, pairs: Sequence[tuple[Words, Words]]) -> Words:
    """The name with both words of each pair exchanged, the longest first: counter-clockwise has clockwise in it."""
    counterparts = dict([*pairs, *((other, one) for one, other in pairs)])
    longest_first = sorted(counterparts, key=len, reverse=True)
    swapped: list[str] = []
    place = 0
    while place < len(name):
        found = next((side for side in longest_first if name[place : place + len(side)] == side), None)
        swapped += name[place : place + 1] if found is None else counterparts[found]
        place += 1 if found is None else len(found)
    return tuple(swapped)


def _check_used(pairs: str, names: Sequence[Words]) -> None:
    for pair, text in zip(label_pairs(pairs), pairs.split(";"), strict=True):
        if all(_swapped(name, [pair]) == name for name in names):
            raise RecipeError(
                f"flip_labels {text}: no name of a class has either word; take words of names such as "
                f"{' '.join(names[0])!r}, or flip_labels none"
            )


def listed(found: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
