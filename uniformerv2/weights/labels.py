"""Class lists of Kinetics, in the two orders that are in circulation.

A label belongs to a checkpoint, never to a dataset name alone: the same 400 classes are numbered differently in the
official files ("official", also used by VideoMAE V2 and InternVideo) and in mmaction2's ("mmaction2", alphabetical).
That the official UniFormerV2 files follow the first is inferred, not confirmed: see docs/checkpoints.md.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal, get_args

ClassOrder = Literal["official", "mmaction2"]
KineticsName = Literal["kinetics400", "kinetics600", "kinetics700", "kinetics710"]


def class_list(dataset: KineticsName, order: ClassOrder) -> tuple[str, ...]:
    """Names of the classes of a dataset; entry i belongs to row i of a classifier in that order.

    Raises:
        ValueError: an unknown dataset or order.
    """
    if dataset not in get_args(KineticsName) or order not in get_args(ClassOrder):
        raise ValueError(
            f"no class list of {dataset!r} in the order {order!r}; there are {', '.join(get_args(KineticsName))} "
            f"in {' and '.join(get_args(ClassOrder))}"
        )
    file = files("uniformerv2.weights") / "classes" / f"{dataset}.{order}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())
