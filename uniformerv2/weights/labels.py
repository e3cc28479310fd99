"""Class lists of the datasets, their orders, and heads mapped from one order or dataset to another.

Labels belong to a checkpoint, never to a dataset name alone: the same 400 classes are numbered differently in the
official files ("official", also used by VideoMAE V2 and InternVideo) and in mmaction2's ("mmaction2"). Only Kinetics
is known in two orders; the other datasets have one list, mmaction2's, for both. Some labels of released heads are
uncertain: see `released_labels` and docs/checkpoints.md.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from uniformerv2.errors import CheckpointError
from uniformerv2.text import normalised

if TYPE_CHECKING:
    from torch import nn

    from uniformerv2.model.uniformerv2 import UniFormerV2

ClassOrder = Literal["official", "mmaction2"]

DATASETS = {  # number of classes
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "kinetics710": 710,
    "moments_in_time": 339,
    "something_something_v1": 174,
    "something_something_v2": 174,
    "activitynet": 200,
    "hacs": 200,
    "ucf101": 101,
    "hmdb51": 51,
}
ALIASES = {f"k{number}": f"kinetics{number}" for number in (400, 600, 700, 710)} | {
    "mit": "moments_in_time",
    "mitv1": "moments_in_time",
    "ssv1": "something_something_v1",
    "sthv1": "something_something_v1",
    "ssv2": "something_something_v2",
    "sthv2": "something_something_v2",
    "anet": "activitynet",
}
PARTS_OF_710 = ("kinetics400", "kinetics600", "kinetics700")

# no model of these was released with this architecture, and other data has as many classes
NOT_RELEASED = ("ucf101", "hmdb51")

INFERRED = (
    "the order of the labels is inferred: official Kinetics files are assumed to follow the lists of VideoMAE V2 and "
    "InternVideo, which no released file could confirm"
)
UNCONFIRMED = "the order of the labels is unconfirmed: {} is assumed for a head whose own list was never published"


def dataset_name(name: str) -> str:
    """The canonical name of a dataset.

    Args:
        name: one of `DATASETS` or of `ALIASES`, in any case, with "-" or "_".

    Raises:
        ValueError: an unknown dataset.
    """
    plain = name.casefold().replace("-", "_")
    plain = ALIASES.get(plain, plain)
    if plain not in DATASETS:
        raise ValueError(f"no class list of {name!r}; there are {', '.join(DATASETS)} (short: {', '.join(ALIASES)})")
    return plain


@cache
def class_list(dataset: str, *, order: ClassOrder = "official") -> tuple[str, ...]:
    """Names of the classes of a dataset; entry i belongs to row i of a classifier in that order.

    Args:
        dataset: a name that `dataset_name` knows. HACS has the classes of ActivityNet.
        order: matters for Kinetics only.

    Raises:
        ValueError: an unknown dataset or order.
    """
    dataset = dataset_name(dataset)
    if order not in get_args(ClassOrder):
        raise ValueError(f"no class list in the order {order!r}; there are {' and '.join(get_args(ClassOrder))}")
    if dataset == "hacs":
        dataset = "activitynet"
    return _lines(f"{dataset}.{order}.txt" if dataset.startswith("kinetics") else f"{dataset}.txt")


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Names of the classes out of a text file in UTF-8: line i belongs to row i of a classifier.

    Raises:
        CheckpointError: no such file, no text in UTF-8, an empty line, or a name twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"{path}: no labels can be read from it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: not UTF-8 (at byte {error.start}); labels are a name a line, in UTF-8"
        ) from error
    labels = [line.strip() for line in text.rstrip().split("\n")]
    first: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        if not label:
            raise CheckpointError(f"{path}:{number}: an empty line; labels are a name a line, one for each class")
        if first.setdefault(normalised(label), number) != number:
            raise CheckpointError(f"{path}:{number}: {label!r} is the name of line {first[normalised(label)]} too")
    return tuple(labels)


def released_labels(dataset: str, project: ClassOrder) -> tuple[tuple[str, ...], str]:
    """Labels of a head that was released for a dataset.

    Args:
        dataset: a name that `dataset_name` knows.
        project: whose file it is, the official authors' or mmaction2's.

    Returns:
        The labels, and a line on why they are uncertain; "" where they are certain.

    Raises:
        ValueError: an unknown dataset or project.
    """
    dataset = dataset_name(dataset)
    labels = class_list(dataset, order=project)
    if dataset == "hacs":
        return labels, UNCONFIRMED.format("mmaction2's list of ActivityNet, whose classes HACS has,")
    if project == "mmaction2":  # publishes the lists of its heads
        return labels, ""
    return labels, INFERRED if dataset.startswith("kinetics") else UNCONFIRMED.format(f"mmaction2's list of {dataset}")


def datasets_with(num_classes: int) -> list[str]:
    """Canonical names of the datasets with so many classes: two for 174 and for 200, often none."""
    return [name for name, classes in DATASETS.items() if classes == num_classes]


def known_order(labels: Sequence[str]) -> tuple[str, ClassOrder] | None:
    """Dataset and order of a list of labels; None where it is not exactly one of ours.

    A list for both orders counts as mmaction2's, and that of ActivityNet and HACS as ActivityNet's.
    """
    for dataset in datasets_with(len(labels)):
        for order in ("mmaction2", "official"):
            if class_list(dataset, order=order) == tuple(labels):
                return dataset, order
    return None


def known_lists(num_classes: int) -> dict[str, tuple[str, ...]]:
    """All orders of so many classes, ours and the alphabetical ones, by a name for people."""
    named: dict[str, tuple[str, ...]] = {}
    for dataset in datasets_with(num_classes):
        if dataset.startswith("kinetics"):
            named[f"the official {dataset} order"] = class_list(dataset, order="official")
        named[f"mmaction2's {dataset} order"] = class_list(dataset, order="mmaction2")
    for dataset in datasets_with(num_classes):
        named[f"the alphabetical {dataset} order"] = tuple(sorted(class_list(dataset, order="mmaction2")))
    first = {labels: title for title, labels in reversed(named.items())}  # of equal lists, the first name is kept
    return {title: labels for title, labels in named.items() if first[labels] == title}


def matching(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Indices of classes in another list, whatever their spelling there.

    Equal names are matched first (letters and digits only, in any case), then the pairs of `classes/kinetics.same.txt`.

    Args:
        names: classes, each once.
        among: the other list.

    Returns:
        An index into `among` for each name, no index twice; None where a name has no match.
    """
    indices = {_normalised(name): index for index, name in enumerate(among)}
    equal = [indices.get(_normalised(name)) for name in names]
    taken = set(equal)
    result = []
    for name, index in zip(names, equal, strict=True):
        if index is None:
            others = (indices[other] for other in _other_names().get(_normalised(name), ()) if other in indices)
            index = next((other for other in others if other not in taken), None)
        if index is None:
            return None
        taken.add(index)
        result.append(index)
    return result


def reordering(labels: Sequence[str], order: ClassOrder) -> list[int] | None:
    """Rows of a head that put it into an order.

    Args:
        labels: of the head, one of our lists.
        order: the new order.

    Returns:
        Row `result[i]` of the head belongs to entry i of `class_list(dataset, order=order)`; a permutation. None where
        `labels` are no known list.

    Each of the two orders of Kinetics-600, 700 and 710 has one class that the other lacks (the official lists contain
    "throwing ball" twice, in place of another class); these two are matched with each other.
    """
    known = known_order(labels)
    return matching(class_list(known[0], order=order), labels) if known else None


def head_part(labels: Sequence[str], dataset: str) -> tuple[tuple[str, ...], list[int]]:
    """Labels and rows of a Kinetics-710 head that make the head of Kinetics-400, 600 or 700.

    Args:
        labels: of the head, in either order.
        dataset: which of the three.

    Returns:
        The labels of the part in the same order as `labels`, and the row of each.

    Raises:
        CheckpointError: the labels are no known list of Kinetics-710, or the dataset is no part of it.
    """
    try:
        part = dataset_name(dataset)
    except ValueError:
        part = dataset
    if part not in PARTS_OF_710:
        raise CheckpointError(f"head {dataset!r}: a Kinetics-710 head holds those of {', '.join(PARTS_OF_710)} only")
    known = known_order(labels)
    if known is None or known[0] != "kinetics710":
        raise CheckpointError(
            f"head {dataset!r}: only a head with the labels of Kinetics-710 can be mapped, this one has "
            f"{_describe(labels)}; load the weights with the labels that belong to them"
        )
    own = class_list(part, order=known[1])
    rows = matching(own, labels)
    assert rows is not None, "our own lists of Kinetics fit each other"
    return own, rows


def map_head(model: nn.Module, dataset: str) -> UniFormerV2:
    """A model with a Kinetics-710 head as a model of Kinetics-400, 600 or 700.

    Args:
        model: its labels decide which row of the head is which; not changed, and may be wrapped as for `Predictor`.
        dataset: which of the three.

    Returns:
        A model with those rows of the classifier only, and their labels. It shares all other weights with `model`.

    Raises:
        CheckpointError: as `head_part`.
    """
    from torch import nn

    from uniformerv2.model.wrappers import plain_model

    model = plain_model(model)
    labels, rows = head_part(model.labels, dataset)
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    part = deepcopy(model, shared)
    part.labels, part.thresholds = labels, tuple(model.thresholds[row] for row in rows if model.thresholds)
    part.loading_report += (f"head: {len(rows)} of the {len(model.labels)} rows, those of {dataset_name(dataset)}",)
    part.config = replace(model.config, num_classes=len(rows))
    linear = part.head.linear
    linear.out_features = len(rows)
    for name in ("weight", "bias"):
        whole = getattr(linear, name)
        setattr(linear, name, nn.Parameter(whole.detach()[rows], requires_grad=whole.requires_grad))
    return part


def _describe(labels: Sequence[str]) -> str:
    known = known_order(labels)
    if known:
        return f"those of {known[0]} in the {known[1]} order"
    return f"{len(labels)} others ({', '.join(labels[:3])}, ...)" if labels else "none"


def _lines(name: str) -> tuple[str, ...]:
    return tuple((files("uniformerv2.weights") / "classes" / name).read_text(encoding="utf-8").splitlines())


@cache
def _other_names() -> dict[str, list[str]]:
    """A class of Kinetics -> its other names, all normalised."""
    names: dict[str, list[str]] = defaultdict(list)
    for line in _lines("kinetics.same.txt"):
        if not line.startswith("#"):
            first, second = map(_normalised, line.split("\t"))
            names[first].append(second)
            names[second].append(first)
    return names


def _normalised(name: str) -> str:
    """The part that all spellings of a name share: quotes, dashes, underscores and capitals differ."""
    plain = normalised(name).casefold()
    kept = (one for one in plain if one.isalnum() or (not one.isascii() and unicodedata.category(one)[0] in "MS"))
    return "".join(kept) or plain
