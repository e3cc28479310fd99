"""The labels of a data set under the spelling of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uniformerv2.data.annotations import Annotation, unknown_labels
from uniformerv2.weights.labels import matching


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
    names = {row.label for row in annotations}
    others = sorted(names - set(labels))
    left = [label for label in labels if label not in names]
    places = matching(others, left)
    if places is None:
        unknown = [name for name in others if matching([name], left) is None] or others
        raise unknown_labels(annotations, unknown, labels)
    renamed = {name: left[place] for name, place in zip(others, places, strict=True)}
    return [replace(row, label=renamed[row.label]) if row.label in renamed else row for row in annotations], renamed
