"""The published UniFormerV2 checkpoints: 49 of the official project and 23 of mmaction2, as data (zoo.csv).

Names read `[frozen-]SIZE-DATASET[-k710]-FRAMESxPIXELS[-mmaction2]`, in lower case:

- SIZE is `b16` or `l14` (L/14@336 where PIXELS is 336); `frozen-` models train the video parts only;
- DATASET is k400 k600 k700 k710 mit ssv1 ssv2 anet hacs;
- `-k710` marks Kinetics models that were pretrained on Kinetics-710; the others start at CLIP;
- `-mmaction2` marks the files of mmaction2: other key names, its own class order, and an accuracy that it measured.

So `b16-k400-8x224` is B/16 on Kinetics-400 from CLIP, 8 frames of 224 pixels.

Sources are the model zoo of OpenGVLab/UniFormerV2 (722a434) and the README, metafile.yml and configurations of
mmaction2 (4d6c934); contradictions between them are in `note`. The official zoo has no top-5; those of official
entries are quoted in mmaction2's README. Parameters and multiply-adds are computed from the configuration on demand.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import MODEL_SIZES, Layout, ModelConfig, Preprocessing, named_config
from uniformerv2.model.counting import count_multiply_adds, count_parameters
from uniformerv2.weights.labels import DATASETS, dataset_name

Format = Literal["official", "mmaction2"]
Availability = Literal["gone", "on the hub", "untested"]

AVAILABILITY: dict[Availability, str] = {  # what is known, and from where
    "gone": "its bucket answers NoSuchBucket (issues 77 and 82 of OpenGVLab/UniFormerV2)",
    "on the hub": "the hub repository Andy1621/uniformerv2 lists it; not loaded here yet",
    "untested": "its address was published; not loaded here yet",
}

LICENCES: dict[Format, str] = {
    "official": "Apache-2.0 (LICENSE file) or MIT (README, hub): the project contradicts itself",
    "mmaction2": "Apache-2.0 (mmaction2); converted files come from the official ones",
}


@dataclass(frozen=True)
class ZooEntry:
    """A published checkpoint: its model, its published accuracy, its address."""

    name: str
    dataset: str  # a key of labels.DATASETS
    size: str  # a key of model.config.MODEL_SIZES
    frozen: bool  # the image transformer was not trained, and the class tokens are not mixed in
    pretraining: str  # such as CLIP+K710
    num_frames: int
    views: str  # frames x crops x clips of the published accuracy; "" where none was published
    top1: float | None  # percent, as published
    top5: float | None
    format: Format  # of the key names
    availability: Availability
    url: str  # https://..., or hf://owner/name/file for a file on the hub
    sha256: str  # of the file, where it was published; else ""
    note: str

    @property
    def layout(self) -> Layout:
        """The temporal layout is for Something-Something, the scene layout for all others."""
        return "temporal" if self.dataset.startswith("something") else "scene"

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return MODEL_SIZES[self.size][-1]

    @property
    def sha256_head(self) -> str:
        """First 8 hex digits of the sha256, with which mmaction2's file names end; else ""."""
        return self.url.removesuffix(".pth")[-8:] if self.format == "mmaction2" else ""

    @property
    def licence(self) -> str:
        return LICENCES[self.format]

    def config(self) -> ModelConfig:
        """The architecture, with the training options at their defaults."""
        return named_config(self.size, self.layout, num_classes=DATASETS[self.dataset], mix_class_token=not self.frozen)

    def preprocessing(self) -> Preprocessing:
        """As in training. Official Something-Something frames were read by OpenCV: BGR."""
        blue_first = self.format == "official" and self.layout == "temporal"
        return Preprocessing(
            num_frames=self.num_frames,
            size=(self.image_size, self.image_size),
            mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225),
            channel_order="bgr" if blue_first else "rgb",
        )

    @property
    def parameters(self) -> int:
        """Trainable parameters, counted from `config()`."""
        # of one class, so that datasets share the counting: a class adds a row of weights and a bias
        added = (MODEL_SIZES[self.size][0] + 1) * (DATASETS[self.dataset] - 1)
        return _parameters(replace(self.config(), num_classes=1)) + added

    @property
    def multiply_adds(self) -> int:
        """Of one view in eval mode, counted from `config()` as model.counting does."""
        return count_multiply_adds(self.config(), self.num_frames)

    def to_json(self) -> dict[str, Any]:
        """All fields and properties."""
        computed = ("layout", "image_size", "sha256_head", "licence", "parameters", "multiply_adds")
        return asdict(self) | {name: getattr(self, name) for name in computed}


@cache
def _parameters(config: ModelConfig) -> int:
    return count_parameters(config)


@cache
def _entries() -> dict[str, ZooEntry]:
    text = (files("uniformerv2.weights") / "zoo.csv").read_text(encoding="utf-8")
    return {row["name"]: _entry(row) for row in csv.DictReader(text.splitlines())}


def _entry(row: dict[str, str]) -> ZooEntry:
    fields: dict[str, Any] = {
        **row,
        "frozen": row["frozen"] == "yes",
        "num_frames": int(row["num_frames"]),
        "top1": float(row["top1"]) if row["top1"] else None,
        "top5": float(row["top5"]) if row["top5"] else None,
    }
    return ZooEntry(**fields)


def list_models(*, dataset: str | None = None) -> list[ZooEntry]:
    """The published checkpoints, the official ones first.

    Args:
        dataset: only those of this dataset: its name or a short one, such as "kinetics400", "K400", "sthv2".

    Raises:
        CheckpointError: no published checkpoint is of that dataset.
    """
    entries = list(_entries().values())
    if dataset is None:
        return entries
    try:
        chosen = [entry for entry in entries if entry.dataset == dataset_name(dataset)]
    except ValueError:  # no dataset that we know
        chosen = []
    if not chosen:
        known = ", ".join(sorted({entry.dataset for entry in entries}))
        raise CheckpointError(f"no published model is of the dataset {dataset!r}; there are models of {known}")
    return chosen


def zoo_entry(name: str) -> ZooEntry | None:
    """The checkpoint of that name, in any case; None where there is none."""
    return _entries().get(name.lower())


def fetch_entry(entry: ZooEntry) -> Path:
    """The file of a published checkpoint: from the mirror, the cache, or where it was published.

    Returns:
        A local file whose hash was checked, as far as it is known. Not to be changed.

    Raises:
        CheckpointError: it is gone (the message names the nearest that is not), cannot be downloaded, or has another
            hash.
    """
    from uniformerv2.weights.download import download, find_download, hub_file  # with torch, which no list needs

    if entry.url.startswith("hf://"):
        owner, name, file = entry.url.removeprefix("hf://").split("/", 2)
        return hub_file(f"{owner}/{name}", file, sha256=entry.sha256)
    if entry.availability != "gone":
        return download(entry.url, sha256=entry.sha256 or entry.sha256_head)
    found = find_download(entry.url, sha256=entry.sha256)
    if found is None:
        raise CheckpointError(f"{entry.name}: {entry.url} is gone: {AVAILABILITY['gone']}; {_alternatives(entry)}")
    return found


def _alternatives(entry: ZooEntry) -> str:
    mirror = "put a copy of your own into a folder and name the folder in UNIFORMERV2_HUB"
    other = nearest(entry)
    if other is None:
        return f"no other {entry.dataset} model is available; {mirror}"
    return f"the nearest that may be available is {other.name} ({other.availability}); or {mirror}"


def nearest(entry: ZooEntry) -> ZooEntry | None:
    """The most similar checkpoint of the same dataset that is not gone; None where all are."""

    def difference(other: ZooEntry) -> tuple[Any, ...]:
        return (
            MODEL_SIZES[other.size][0] != MODEL_SIZES[entry.size][0],  # width
            other.image_size != entry.image_size,
            abs(other.num_frames - entry.num_frames),
            other.pretraining != entry.pretraining,
            other.format != entry.format,
        )

    left = [other for other in list_models(dataset=entry.dataset) if other.availability != "gone" and other != entry]
    return min(left, key=difference, default=None)
