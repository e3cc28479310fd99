"""The published accuracy of a checkpoint, and what makes a measured accuracy incomparable with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniformerv2.data.annotations import Annotation
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.views import Views
from uniformerv2.weights.labels import class_list
from uniformerv2.weights.zoo import ZooEntry, zoo_entry

# Rows of the validation sets, as their owners publish them. Many videos are no longer available, hence the share.
VALIDATION_VIDEOS = {
    "kinetics400": 19_906,
    "kinetics600": 30_000,
    "kinetics700": 35_000,
    "moments_in_time": 33_900,
    "something_something_v1": 11_522,
    "something_something_v2": 24_777,
    "activitynet": 4_926,
    "hacs": 5_981,
}
SHARE = 0.9  # of these videos has to be there


@dataclass(frozen=True)
class Published:
    """The published figures of a checkpoint."""

    name: str  # of the checkpoint, in `list_models`
    dataset: str
    views: str  # frames x crops x clips
    top1: float  # percent
    top5: float | None
    differences: tuple[str, ...]  # between the two measurements; without any, the figures can be compared


def published_figure(
    model: UniFormerV2, annotations: Sequence[Annotation], *, views: Views, precision: InferencePrecision, skipped: int
) -> Published | None:
    """The published figures of a model, and how a measurement of it differs.

    A model is identified by its `origin`, where that is a name of `list_models`: `load_model` sets it for models that
    are loaded by name, and `save_model` keeps it. The videos can only be told from those of the validation set by
    their labels and their number.

    Args:
        model: that was measured.
        annotations: the videos, under the labels of the model.
        views, precision: of the measurement.
        skipped: how many of the videos could not be read.

    Returns:
        None unless the model is a published one with a published accuracy and has its published classes.
    """
    entry = zoo_entry(getattr(model, "origin", ""))
    if entry is None or entry.top1 is None:
        return None
    name = entry.dataset
    if tuple(model.labels) not in (class_list(name, order="official"), class_list(name, order="mmaction2")):
        return None
    differences = [
        *_view_differences(model, entry, views),
        *_data_differences(model, entry, annotations),
        *([f"measured in {precision}"] if precision != "fp32" else []),
        *([f"{skipped} videos could not be read"] if skipped else []),
    ]
    return Published(entry.name, entry.dataset, entry.views, entry.top1, entry.top5, tuple(differences))


def _view_differences(model: UniFormerV2, entry: ZooEntry, views: Views) -> list[str]:
    own, then = model.preprocessing, entry.preprocessing()
    measured = f"{own.num_frames}x{views.crops}x{views.clips}"
    found = []
    if measured != entry.views:
        found.append(f"measured with {measured} views")
    if (own.size, own.mean, own.std, own.channel_order) != (then.size, then.mean, then.std, then.channel_order):
        found.append(f"measured on {own.size[1]}x{own.size[0]} pixels with another preprocessing")
    if views.average != "probabilities":
        found.append("measured with averaged logits")
    return found


def _data_differences(model: UniFormerV2, entry: ZooEntry, annotations: Sequence[Annotation]) -> list[str]:
    found = []
    absent = len(set(model.labels)) - len({row.label for row in annotations})
    if absent:
        found.append(f"measured without {absent} of its {len(model.labels)} classes")
    expected = VALIDATION_VIDEOS.get(entry.dataset)
    if expected is None:
        found.append(f"the validation set of {entry.dataset} is not known here")
    elif not SHARE * expected <= len(annotations) <= expected:
        found.append(f"measured on {len(annotations):,} videos, the validation set has about {expected:,}")
    if other := sorted({row.split for row in annotations if row.split not in (None, "val")}, key=str):
        found.append(f"measured on the split {', '.join(map(str, other))}")
    return found
