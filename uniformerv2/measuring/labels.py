"""The labels of a data set under the spelling of a model, and whether those of a model are in another order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from uniformerv2.data.annotations import Annotation, unknown_labels
from uniformerv2.weights.labels import known_lists, matching


def match_labels(annotations: Sequence[Annotation], labels: Sequence[str]) -> tuple[list[Annotation], dict[str, str]]:
    """Annotations under the labels of a model.

    A label that the model does not have is taken for the one of its other labels that is the same in another spelling
    or in another list of Kinetics; see `weights.labels.matching`.

    Args:
        annotations: the rows.
        labels: of the model.

    Returns:
        The rows, and the replaced labels with their replacements.

    Raises:
        AnnotationError: labels without a counterpart, or several for one label of the model.
    """
    names = {label for row in annotations for label in row.labels}
    others = sorted(names - set(labels))
    left = [label for label in labels if label not in names]
    places = matching(others, left)
    if places is None:
        unknown = [name for name in others if matching([name], left) is None] or others
        raise unknown_labels(annotations, unknown, labels)
    renamed = {name: left[place] for name, place in zip(others, places, strict=True)}
    return [_renamed(row, renamed) for row in annotations], renamed


def _renamed(row: Annotation, names: Mapping[str, str]) -> Annotation:
    if names.keys().isdisjoint(row.labels):
        return row
    label, *others = (names.get(label, label) for label in row.labels)
    return replace(row, label=label, other_labels=tuple(others))


# Two unrelated orders have one class in the same position on average, and more than three in 2 % of all pairs of
# orders: a trained model with labels in a wrong order is right no more often than 3 / classes.
CLASSES_IN_PLACE = 3
GUESSING = 0.01  # results that chance gives less often are better than guessing
CONVINCING = 1e-6  # the same for another order: several are tried, and a false alarm misleads
TRAINED = 0.25  # accuracy that a trained model surpasses; all published models reach more than 0.4

Guess = tuple[int, str]  # predicted row of the classifier, name of the right class


def order_warning(labels: Sequence[str], guesses: Sequence[Guess]) -> str:
    """The likely cause of results at chance level.

    The predictions are read in every order that is known for this number of classes. A repeated prediction is no
    further evidence, so the distinct pairs of predicted and right class are tested.

    Args:
        labels: of the model.
        guesses: of each video; the names are among the labels.

    Returns:
        A line; "" where the results are better than chance, too few to tell, or of classes that no known list has.
    """
    known = {title: _read_as(order, guesses) for title, order in known_lists(len(labels)).items()}
    orders = {title: reading for title, reading in known.items() if reading}
    own = _read_as(labels, guesses)
    if not orders or not own or not own.could_be_guessed(GUESSING):
        return ""
    finding = f"top-1 {own.top1:.1%} is what guessing gives with {len(labels)} classes"
    title, best = max(orders.items(), key=lambda order: order[1].top1)
    if not best.could_be_guessed(CONVINCING):
        return f"{finding}: the labels are probably in another order; as {title} top-1 would be {best.top1:.1%}"
    if chance_of(own.videos - own.right, own.videos, 1 - TRAINED) < GUESSING:
        return (
            f"{finding}: the labels are in another order than the known ones ({', '.join(orders)}), "
            "or the model never learned these classes"
        )
    return ""


@dataclass(frozen=True)
class _Reading:
    """How many guesses are right if the rows of the classifier are in some order."""

    classes: int
    videos: int
    right: int  # videos
    pairs: int  # distinct guesses
    right_pairs: int

    @property
    def top1(self) -> float:
        return self.right / self.videos

    def could_be_guessed(self, limit: float) -> bool:
        return chance_of(self.right_pairs, self.pairs, CLASSES_IN_PLACE / self.classes) >= limit


def _read_as(order: Sequence[str], guesses: Sequence[Guess]) -> _Reading | None:
    """The guesses as if row i were class i of an order; None if the order lacks any of the right classes."""
    names = sorted({name for _, name in guesses})
    places = matching(names, order)
    if places is None:
        return None
    row_of = dict(zip(names, places, strict=True))
    right, right_pairs = (sum(row == row_of[name] for row, name in some) for some in (guesses, set(guesses)))
    return _Reading(len(order), len(guesses), right, len(set(guesses)), right_pairs)


def chance_of(hits: int, trials: int, probability: float) -> float:
    """Chernoff's bound on the probability of at least `hits` hits in independent trials; 1 up to their mean.

    Args:
        hits: in [0, trials].
        trials: at least 1.
        probability: of a hit, in (0, 1).
    """
    share = hits / trials
    if share <= probability:
        return 1.0
    divergence = share * math.log(share / probability)
    if hits < trials:
        divergence += (1 - share) * math.log((1 - share) / (1 - probability))
    return math.exp(-trials * divergence)
