"""Leave one person out: ten actions of nine people, each tested by a model that has never seen that person.

    python benchmarks/weizmann.py WEIZMANN IMAGE_MODEL [--layouts image scene temporal] [--output DIR] [--jobs 2]

WEIZMANN has a folder per action, with files PERSON_ACTION.avi (Blank et al., ICCV 2005); IMAGE_MODEL is what to arm.
The layouts differ in nothing but what is added to the image model: nothing ("image": the mean over the frames of its
class token), or what the paper adds for scenes or for motion. The person left out is looked at once, after the last
epoch, with one view and with 4 clips x 3 crops; nothing is chosen by it.

Each fold is a process of its own with one thread, `--jobs` at a time. A fold that is done is kept in DIR; run again to
go on. The cost of a fold is that of its process from its first import to its last view. Where other work shares the
machine, only the CPU minutes say what it cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import machine

from uniformerv2 import load_model
from uniformerv2.atomic import write_text
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import VideoError
from uniformerv2.measuring.evaluation import evaluate
from uniformerv2.measuring.results import Evaluation
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.video.views import Views

LAYOUTS: dict[str, dict[str, Any]] = {  # fields of a recipe
    "image": {"layout": "scene", "global_after": ()},
    "scene": {"layout": "scene"},
    "temporal": {"layout": "temporal"},
}


@dataclass(frozen=True)
class Fold:
    """What one process does."""

    data: Path
    output: Path
    layout: str
    person: str  # who is left out
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.output / self.layout / self.person

    @property
    def result(self) -> Path:
        return self.folder.with_suffix(".json")


@dataclass(frozen=True)
class Result:
    """What came of a fold."""

    layout: str
    person: str
    videos: int
    single_view: list[list[str]]  # [action, what it was taken for] of each video that was missed with one view
    all_views: list[list[str]]  # with all views of the recipe
    wall_minutes: float
    cpu_minutes: float


def base_recipe(image_model: Path) -> Recipe:
    """The worked example of docs/training.md, with several views at the end."""
    return Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(size=144),
        Optimization(epochs=20, batch_size=10, evaluate_every=20, precision="fp32"),
        evaluation=Views(clips=4, crops=3),
    )


def run_fold(fold: Fold) -> Result:
    """Train, test, and write down what came of it. Called in a process that is there for nothing else."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    fold.folder.parent.mkdir(parents=True, exist_ok=True)
    held_out = fold.folder.with_suffix(".txt")
    write_text(held_out, f"{fold.person}_*\n")
    trained = train_classifier(
        fold.data, fold.recipe, fold.folder, holdout_list=held_out, workers=0, overwrite=fold.folder.exists()
    )
    rows = [row for row in read_annotations(fold.data) if person_of(row.path) == fold.person]
    single = evaluate(load_model(str(trained.last)), rows, workers=0)
    if trained.skipped or single.skipped:
        raise VideoError(f"{fold.data}: not every video could be read: {trained.skipped}")
    result = Result(
        fold.layout,
        fold.person,
        len(rows),
        misses(single),
        misses(trained.evaluation),
        (time.perf_counter() - start) / 60,
        sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) / 60,
    )
    write_text(fold.result, json.dumps(vars(result), indent=2) + "\n")
    return result


def person_of(path: str | Path) -> str:
    return Path(path).stem.split("_")[0]


def misses(evaluation: Evaluation) -> list[list[str]]:
    return [[video.label, video.labels[0]] for video in evaluation.videos if video.label != video.labels[0]]


def run_folds(folds: Sequence[Fold], jobs: int) -> list[Result]:
    """Results in the order of the folds; those that are done already are read."""
    todo = [fold for fold in folds if not fold.result.is_file()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(run_fold, fold) for fold in todo]):
            done = future.result()
            print(f"{done.layout} {done.person}: {right([done], 'all_views')} of {done.videos}, {done}", flush=True)
    return [Result(**json.loads(fold.result.read_text())) for fold in folds]


def right(results: Iterable[Result], views: str) -> int:
    return sum(result.videos - len(getattr(result, views)) for result in results)


def table(results: Sequence[Result], people: Sequence[str], layouts: Sequence[str], views: int) -> str:
    """Markdown."""
    heads = ["layout", f"right with {views} views", "with one view", *people, "CPU min", "wall min"]
    lines = [heads, ["---"] * len(heads)]
    for layout in layouts:
        own = [result for result in results if result.layout == layout]
        videos = sum(result.videos for result in own)
        counts = [str(right([result], "all_views")) for result in own]
        costs = [f"{sum(getattr(result, name) for result in own):.0f}" for name in ("cpu_minutes", "wall_minutes")]
        both = [f"{right(own, name)} of {videos}" for name in ("all_views", "single_view")]
        lines.append([layout, *both, *counts, *costs])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def named_misses(results: Iterable[Result], views: str) -> str:
    """As in: run for walk 3 (daria, eli, ira), jump for side 1 (moshe)."""
    found = [(f"{action} for {other}", result.person) for result in results for action, other in getattr(result, views)]
    return ", ".join(
        f"{miss} {count} ({', '.join(person for one, person in found if one == miss)})"
        for miss, count in Counter(miss for miss, _ in found).most_common()
    )


def field_value(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="WEIZMANN", type=Path)
    parser.add_argument("image_model", metavar="IMAGE_MODEL", type=Path)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--people", nargs="+", help="who is left out, one after another; default: everybody")
    parser.add_argument("--output", type=Path, default=Path("runs/weizmann"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="folds at a time, with one thread each")
    parser.add_argument(
        "--vary", nargs="+", type=field_value, default=[], metavar="NAME=JSON", help="other fields of the recipe"
    )
    arguments = parser.parse_args()

    recipe = base_recipe(arguments.image_model).vary(**dict(arguments.vary))
    people = arguments.people or sorted({person_of(row.path) for row in read_annotations(arguments.data)})
    folds = [
        Fold(arguments.data, arguments.output, layout, person, recipe.vary(**LAYOUTS[layout]))
        for layout in arguments.layouts
        for person in people
    ]
    results = run_folds(folds, arguments.jobs)
    torch.set_num_threads(1)
    print(f"{machine()}, {arguments.jobs} folds at a time")
    print(*(f"{part}: {values}" for part, values in recipe.lines()), sep="\n", end="\n\n")
    print(table(results, people, arguments.layouts, recipe.evaluation.clips * recipe.evaluation.crops), end="\n\n")
    for layout in arguments.layouts:
        own = [result for result in results if result.layout == layout]
        for views in ("all_views", "single_view"):
            print(f"{layout}, missed with {views.replace('_', ' ')}: {named_misses(own, views) or 'nothing'}")


if __name__ == "__main__":
    main()
