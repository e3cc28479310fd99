"""How long the head of a localiser trains on the cached embeddings of many films.

    python benchmarks/localiser_training.py --output FOLDER [--films 500] [--sizes Ti/16 B/16] [--threads 2]

The embeddings are made up, and lie in the cache as those of films do: two windows a second, a direction for each class
inside its spans, noise everywhere. A sixth more films are held out, as real ones would be. All else is a localiser's
default: recipe, evaluations, a checkpoint after each epoch with the video model, whose weights are random. Where other
work shares the machine, only the minutes of the processor say what it cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import machine

from uniformerv2.data.annotations import Annotation
from uniformerv2.model.config import named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.localisation.films import EmbeddingCache, films_of
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.training import train_localiser

CLASSES = 10
SPANS = 8  # of a film
HELD_OUT = 6  # every so many films one


def spans_of(film: Path, seconds: float, number: int) -> list[Annotation]:
    """Spans of 2 to 15 s, one in each part of the film."""
    draw = torch.Generator().manual_seed(number)
    split, part = "test" if number % HELD_OUT == HELD_OUT - 1 else "train", seconds / SPANS
    rows = []
    for place in range(SPANS):
        length, before = torch.rand(2, generator=draw).tolist()
        length = 2 + length * (min(part, 15) - 2)
        start = place * part + before * (part - length)
        label = int(torch.randint(CLASSES, (), generator=draw))
        rows.append(Annotation(film, f"class {label}", start, start + length, split=split))
    return rows


def write_embeddings(target: Path, rows: list[Annotation], recipe: LocaliserRecipe, seconds: float, width: int) -> None:
    """As `EmbeddingCache` writes those of a film."""
    directions = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    windows = int((seconds - recipe.window_seconds) / recipe.stride_seconds) + 1
    middles = torch.arange(windows) * recipe.stride_seconds + recipe.window_seconds / 2
    embeddings = torch.randn(windows, width)
    for row in rows:
        inside = (middles > (row.start or 0.0)) & (middles < (row.end or seconds))
        embeddings[inside] += 0.5 * directions[int(row.label.split()[1])]
    first = torch.tensor([0.0, recipe.window_seconds], dtype=torch.float64)
    end = torch.tensor(seconds, dtype=torch.float64)
    save_file({"embeddings": embeddings, "first": first, "duration": end}, target)


def measure(output: Path, size: str, films: int, seconds: float, epochs: int | None) -> dict[str, object]:
    """One training."""
    shutil.rmtree(output, ignore_errors=True)
    cached = output / "embeddings"
    cached.mkdir(parents=True)
    recipe = LocaliserRecipe() if epochs is None else LocaliserRecipe(epochs=epochs)
    model = UniFormerV2(named_config(size)).eval()
    cache = EmbeddingCache(model, recipe, cached)
    rows: list[Annotation] = []
    for number in range(films * HELD_OUT // (HELD_OUT - 1)):
        film = output / f"{number:04}.mp4"
        film.write_bytes(b"nobody opens it")
        rows += (own := spans_of(film, seconds, number))
        write_embeddings(cache._file(films_of(own)[0]), own, recipe, seconds, model.config.width)
    began, processor = time.perf_counter(), time.process_time()
    result = train_localiser(model, rows, recipe, output / "run", feature_cache=cached, device="cpu", workers=1)
    assert result.evaluation is not None
    return {
        "size": size,
        "width": model.config.width,
        "films": films,
        "epochs": recipe.epochs,
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "processor_minutes": round((time.process_time() - processor) / 60, 2),
        "average_map": round(result.evaluation.scores.average_mean_ap, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of its own, emptied before each size")
    parser.add_argument("--films", type=int, default=500, help="to train on")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a film")
    parser.add_argument("--sizes", nargs="+", default=["Ti/16", "B/16"], help="of the video model")
    parser.add_argument("--epochs", type=int, help="other than the default recipe has")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    for size in arguments.sizes:
        folder = arguments.output / size.replace("/", "-")
        found = measure(folder, size, arguments.films, arguments.seconds, arguments.epochs)
        print(json.dumps(found), flush=True)
