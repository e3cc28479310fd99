"""What a cell starts from: an armed image transformer, be it pre-trained first, or a model trained on merged sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.resources import as_file
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock

from evidence.cells import STILLS, Cell, model_config, recipe_of
from evidence.claims import Start
from evidence.data import DataSet, Sources, split_into_folds
from tools.pretrain_stills import pretrain, write_transformer
from uniformerv2 import Annotation, UniFormerV2, arm, load_model, save_model, train_classifier
from uniformerv2.atomic import whole_file
from uniformerv2.progress import say
from uniformerv2.text import short_digest


def pretrained(target: Start, settings: Mapping[str, Any], cache: Path) -> Path:
    """The weights of an image transformer, trained now by one thread where that was not done before.

    Args:
        target: of tools/pretrain_stills.py.
        settings: as PRETRAINING.
        cache: folder of what is kept.
    """
    file = cache / f"stills-{target}-{short_digest(settings)}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            say(f"{target} pre-training on drawn stills, {settings['steps']} steps")
            with redirect_stdout(sys.stderr), whole_file(file) as partial:
                learner = pretrain(target, **settings, workers=0)
                write_transformer(learner, partial, origin=f"evidence, {target}, {json.dumps(settings)}")
    return file


def start_model(cell: Cell, labels: Sequence[str], image: str | Path | None = None) -> UniFormerV2:
    """The model of a cell before it is trained: the image transformer armed as it says, or with random weights.

    Args:
        cell, labels: of which model.
        image: weights of the image transformer, or of a whole model that was trained first; None: those of the demo.
    """
    if cell.start == "merged":
        return load_model(str(image))
    clip = {name: cell.recipe[name] for name in ("num_frames", "size")}
    options = {"num_classes": len(labels), "labels": labels, **clip}
    config = model_config(cell, len(labels))
    with as_file(STILLS) as stills:
        source = str(image or stills)
        plain = arm(source, **options)
        torch.manual_seed(cell.seed)  # the new blocks are the same for any number of classes
        if cell.start == "scratch":
            return UniFormerV2(config, plain.preprocessing, labels)
        changed = {name: value for name, value in vars(config).items() if value != getattr(plain.config, name)}
        return arm(source, **options, **changed)


def trained_on_merged_sets(cell: Cell, data: Mapping[str, DataSet], sources: Sources, device: str = "cpu") -> Path:
    """A model of the architecture of a cell, trained on several sets at once, now where that was not done before."""
    assert cell.pretraining is not None
    sets, epochs = (cell.pretraining[name] for name in ("sets", "epochs"))
    facts = [cell.pretraining, cell.rows, cell.model, cell.recipe, cell.protocol, cell.version]
    file = sources.cache / f"merged-{short_digest(facts)}.safetensors"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            rows = merge(
                [split_into_folds(data[name], sources.small_rows(data[name], cell.recipe["size"]))[0] for name in sets]
            )
            say(f"training on {len(rows)} videos of {', '.join(sets)}")
            with TemporaryDirectory(dir=sources.cache) as folder, whole_file(file) as partial:
                start = Path(folder, "start.safetensors")
                save_model(start_model(replace(cell, start="stills"), sorted({row.label for row in rows})), start)
                recipe = recipe_of(cell, start).vary(epochs=epochs, evaluate_every=epochs)
                options: Any = {"device": device, "workers": 0, "save_every_seconds": 1e9}
                trained = train_classifier(rows, recipe, Path(folder, "run"), **options)
                save_model(load_model(trained.last), partial)
    return file


def merge(sets: Iterable[Sequence[Annotation]]) -> list[Annotation]:
    """The training rows of all sets, each file once, and none that a set tests."""
    rows = [row for one in sets for row in one]
    tested = {row.path for row in rows if row.split == "test"}
    return list({row.path: row for row in rows if row.path not in tested}.values())
