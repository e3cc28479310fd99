"""A localiser against sliding windows of the same classifier, on films of people whom neither has seen.

    python benchmarks/localisation.py weizmann VIDEOS IMAGE_MODEL --output FOLDER [--device cuda] [--workers 8]
    python benchmarks/localisation.py room FOLDER_WITH_ANNOTATIONS IMAGE_MODEL --output FOLDER

VIDEOS is a folder of PERSON_ACTION.avi per class, as Weizmann is kept. A probe of the frozen image model learns the
clips, or pieces of the spans, of the people to train on. Then the head of a localiser, and beside it the sliding
windows of the probe, see the same embeddings of the same windows. Of the sliding windows a label's span is a run of
windows whose probability, averaged over some neighbours, reaches a threshold; both are chosen on the training films.
What they would reach if the held-out films chose them is told too. Each seed draws films (of Weizmann), probe and head
anew. FOLDER gets result-weizmann.json or result-room.json; films, probes and embeddings that it has are not made again.

With --rehearse nobody sees the people held out: those who choose the probe take their place. So settings are chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from localisation_films import Material, People, room, weizmann
from timing import machine

from uniformerv2.device import model_device
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.probing.recipe import ProbeRecipe
from uniformerv2.probing.run import probe
from uniformerv2.spans.scoring import score_spans
from uniformerv2.spans.span import Span, Spans
from uniformerv2.tasks.localisation.films import EmbeddedFilm, EmbeddingCache, films_of
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.task import TIOU
from uniformerv2.tasks.localisation.training import train_localiser
from uniformerv2.weights.loading import load_model

PEOPLE = {
    "weizmann": People(held_out=("lyova", "moshe", "shahar"), chooses=("ira", "lena")),
    "room": People(held_out=("E",), chooses=("D",)),
}
THRESHOLDS = tuple(np.linspace(0.05, 0.95, 19).tolist())
AVERAGED = (1, 3, 5, 9)  # windows


def sliding_spans(scores: np.ndarray, film: EmbeddedFilm, labels: Sequence[str], threshold: float) -> list[Span]:
    """Runs of windows that reach a threshold; scores (windows, labels)."""
    spans = []
    for number, label in enumerate(labels):
        above = np.concatenate([[False], scores[:, number] >= threshold, [False]]).astype(int)
        for first, last in zip(*(np.flatnonzero(np.diff(above) == step) for step in (1, -1)), strict=True):
            start, end = film.times.seconds(np.array([first - 0.5, last - 0.5])).clip(0, film.times.duration).tolist()
            spans.append(Span(start, end, label, float(scores[first:last, number].mean())))
    return spans


@torch.inference_mode()
def window_scores(model: UniFormerV2, film: EmbeddedFilm) -> np.ndarray:
    return model.probabilities(model.head(film.embeddings().to(model_device(model)))).cpu().numpy()


def averaged(scores: np.ndarray, windows: int) -> np.ndarray:
    kernel = np.ones(windows)
    known = np.convolve(np.ones(len(scores)), kernel, "same")
    return np.stack([np.convolve(column, kernel, "same") / known for column in scores.T], axis=1)


def sliding_windows(
    model: UniFormerV2, training: Sequence[EmbeddedFilm], held_out: Sequence[EmbeddedFilm]
) -> dict[str, Any]:
    """Average mAP on the held-out films, with the setting that is best on the training films, and with their best."""

    def by_setting(films: Sequence[EmbeddedFilm]) -> dict[tuple[float, int], float]:
        truth: Spans = {film.path: film.spans for film in films}
        scores = {film.path: window_scores(model, film) for film in films}
        found = {}
        for windows in AVERAGED:
            smooth = {path: averaged(of_film, windows) for path, of_film in scores.items()}
            for threshold in THRESHOLDS:
                spans = {film.path: sliding_spans(smooth[film.path], film, model.labels, threshold) for film in films}
                found[threshold, windows] = score_spans(truth, spans, tiou=TIOU, opentad=True).average_mean_ap
        return found

    tuned, unseen = by_setting(training), by_setting(held_out)
    best = max(tuned, key=lambda setting: tuned[setting])
    return {
        "sliding_windows": unseen[best],
        "threshold": best[0],
        "averaged": best[1],
        "sliding_windows_on_training_films": tuned[best],
        "sliding_windows_with_the_best_threshold": max(unseen.values()),
    }


class Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._last = round(now - self._last, 1), now


def material_of(arguments: argparse.Namespace, folder: Path, seed: int) -> Material:
    people = PEOPLE[arguments.films]
    if arguments.rehearse:
        people = people.rehearsal()
    if arguments.films == "room":
        return room(arguments.data, people)
    options = {"count": arguments.each, "seed": seed, "workers": arguments.workers}
    return weizmann(arguments.data, folder / "films", people, **options)


def compare(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed: the classifier, the localiser, and the sliding windows."""
    torch.set_num_threads(arguments.threads)
    folder, clock = arguments.output / f"{arguments.films}-{seed}", Clock()
    folder.mkdir(parents=True, exist_ok=True)
    running = {"device": arguments.device, "workers": arguments.workers, "progress": arguments.progress}
    material = material_of(arguments, folder, seed)
    clock.lap("films")
    recipe = ProbeRecipe(
        arm=str(arguments.image_model),
        size=(arguments.size, arguments.size),
        num_frames=arguments.num_frames,
        temporal_differences=arguments.temporal_differences,
        epochs=arguments.probe_epochs,
        seed=seed,
    )
    report, checkpoint = (folder / "probe" / name for name in ("probe.json", "best.safetensors"))
    wanted = json.loads(json.dumps(asdict(recipe)))
    if not report.is_file() or json.loads(report.read_text())["recipe"] != wanted:  # of other settings
        probe(material.clips, recipe, report.parent, overwrite=True, **running)
    clock.lap("probe")
    localiser = LocaliserRecipe(
        window_seconds=arguments.window_seconds,
        stride_seconds=arguments.stride_seconds,
        epochs=arguments.epochs,
        seed=seed,
    )
    video = load_model(checkpoint).to(arguments.device)
    cache = EmbeddingCache(video, localiser, folder / "embeddings")
    sides = [films_of(row for row in material.films if row.split == split) for split in ("train", "test")]
    filling = {name: running[name] for name in ("workers", "progress")}
    training, held_out = (cache.fill(side, **filling) for side in sides)
    clock.lap("embeddings")
    options = running | {"overwrite": True, "feature_cache": folder / "embeddings"}
    result = train_localiser(checkpoint, material.films, localiser, folder / "localiser", **options)
    clock.lap("localiser")
    assert result.evaluation is not None
    found = {
        "seed": seed,
        "localiser": result.evaluation.scores.average_mean_ap,
        "localiser_by_tiou": result.evaluation.scores.mean_ap,
        "localiser_by_epoch": [record.get("average_map") for record in result.history if "average_map" in record],
        **sliding_windows(video, training, held_out),
        "probe_top1_of_those_who_choose": json.loads(report.read_text())["best"]["top1"],
        "films": [len(training), len(held_out)],
        "spans": [sum(len(film.spans) for film in side) for side in (training, held_out)],
        "film_seconds": sorted(round(film.times.duration, 1) for film in (*training, *held_out)),
    }
    clock.lap("sliding_windows")
    return found | {"seconds": clock.seconds}


def main(arguments: argparse.Namespace) -> None:
    results = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for result in pool.map(partial(compare, arguments), arguments.seeds):
            results.append(result)
            print(json.dumps(result), flush=True)
    methods = ("localiser", "sliding_windows", "sliding_windows_with_the_best_threshold")
    medians = {name: statistics.median(result[name] for result in results) for name in methods}
    margin = statistics.median(result["localiser"] - result["sliding_windows"] for result in results)
    found = {
        "films": arguments.films,
        "machine": machine(),
        "settings": {name: str(value) for name, value in sorted(vars(arguments).items())},
        "medians": medians,
        "median_margin": margin,
        "seeds": results,
    }
    name = "rehearsal" if arguments.rehearse else "result"
    (arguments.output / f"{name}-{arguments.films}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{arguments.films}: medians of {len(results)} seeds {json.dumps(medians)}, median margin {margin:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", choices=sorted(PEOPLE))
    parser.add_argument("data", type=Path)
    parser.add_argument("image_model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--each", type=int, default=2, help="films of each person of Weizmann")
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--num-frames", type=int, default=8, help="of a window")
    parser.add_argument("--temporal-differences", action="store_true", help="let the probe see the order of frames")
    parser.add_argument("--probe-epochs", type=int, default=40)
    parser.add_argument("--window-seconds", type=float, default=1.0)
    parser.add_argument("--stride-seconds", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=40, help="of the localiser")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode, each a film")
    parser.add_argument("--threads", type=int, default=1, help="of the process of a seed")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--progress", action="store_true")
    main(parser.parse_args())
