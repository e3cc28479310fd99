"""A localiser against sliding windows of the same classifier, on films made of a person's clips.

    python benchmarks/localisation.py VIDEOS IMAGE_MODEL --output FOLDER [--seed 0] [--films 3]

VIDEOS is a folder of PERSON_ACTION.avi per class, as Weizmann is kept. A film has all clips of a person in a drawn
order; before, between and after them somebody stands still for one to four seconds: the person, or another of the same
side. A probe of the frozen image model learns the clips of the training people. Then the head of a localiser, and
beside it the sliding windows, see the same embeddings of the same windows. Of the sliding windows a label's span is a
run of windows whose probability, averaged over some neighbours, reaches a threshold; both are chosen on the training
films.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from uniformerv2.data.annotations import Annotation
from uniformerv2.demo.motions import write_video
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.probing.recipe import ProbeRecipe
from uniformerv2.probing.run import probe
from uniformerv2.spans.scoring import score_spans
from uniformerv2.spans.span import Span, Spans
from uniformerv2.tasks.localisation.films import EmbeddedFilm, EmbeddingCache, films_of
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.task import TIOU
from uniformerv2.tasks.localisation.training import train_localiser
from uniformerv2.video.reader import VideoReader
from uniformerv2.weights.loading import load_model

RATE = 25  # frames/s of the clips
PAUSE = (1.0, 4.0)  # seconds, from and to
STANDING = "bend"  # begins with a person who stands
THRESHOLDS = tuple(np.linspace(0.1, 0.95, 18).tolist())
AVERAGED = (1, 3, 5, 9)  # windows


def people_of(videos: Path) -> dict[str, list[Path]]:
    """The clips of each person."""
    found: dict[str, list[Path]] = {}
    for clip in sorted(videos.glob("*/*_*.avi")):
        found.setdefault(clip.name.partition("_")[0], []).append(clip)
    return found


def frames_of(clip: Path) -> np.ndarray:
    with VideoReader(clip) as reader:
        return reader.frames_at(range(len(reader))).numpy()


def write_film(target: Path, clips: Sequence[Path], stills: Sequence[np.ndarray], dice: random.Random) -> list[Span]:
    """Write the clips in a drawn order with pauses; returns their spans."""
    parts: list[np.ndarray] = []
    spans = []

    def pause() -> None:
        still = dice.choice([stills[0], *stills])  # the first is the person's own
        parts.append(np.repeat(still[None], round(RATE * dice.uniform(*PAUSE)), axis=0))

    for clip in dice.sample(clips, len(clips)):
        pause()
        parts.append(frames_of(clip))
        end = sum(map(len, parts)) / RATE
        spans.append(Span(end - len(parts[-1]) / RATE, end, clip.parent.name))
    pause()
    write_video(target, np.concatenate(parts), rate=RATE)
    return spans


def films(videos: Path, folder: Path, held_out: Sequence[str], count: int, seed: int) -> Iterator[Annotation]:
    """The rows of so many films of each person."""
    people = people_of(videos)
    for person, clips in people.items():
        others = [one for one in people if one != person and (one in held_out) == (person in held_out)]
        standing = [next(clip for clip in people[one] if STANDING in clip.name) for one in (person, *others)]
        stills = [frames_of(clip)[0] for clip in standing]
        for number in range(count):
            film = folder / f"{person}_{number}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            dice = random.Random(f"{seed} {person} {number}")
            for span in write_film(film, clips, stills, dice):
                split = "test" if person in held_out else "train"
                yield Annotation(film, span.label, span.start, span.end, split, person)


def sliding_spans(scores: np.ndarray, film: EmbeddedFilm, labels: Sequence[str], threshold: float) -> list[Span]:
    """Runs of windows that reach a threshold; scores (windows, labels)."""
    spans = []
    for number, label in enumerate(labels):
        above = np.concatenate([[False], scores[:, number] >= threshold, [False]]).astype(int)
        for first, last in zip(*(np.flatnonzero(np.diff(above) == step) for step in (1, -1)), strict=True):
            ends = film.times.seconds(np.array([first - 0.5, last - 0.5])).clip(0, film.times.duration)
            spans.append(Span(*ends.tolist(), label, float(scores[first:last, number].mean())))
    return spans


@torch.inference_mode()
def window_scores(model: UniFormerV2, film: EmbeddedFilm) -> np.ndarray:
    return model.head(film.embeddings()).softmax(-1).numpy()


def averaged(scores: np.ndarray, windows: int) -> np.ndarray:
    kernel = np.ones(windows)
    known = np.convolve(np.ones(len(scores)), kernel, "same")
    return np.stack([np.convolve(column, kernel, "same") / known for column in scores.T], axis=1)


def map_of(films: Sequence[EmbeddedFilm], predictions: Spans) -> float:
    truth: Spans = {film.path: film.spans for film in films}
    return score_spans(truth, predictions, tiou=TIOU, opentad=True).average_mean_ap


def sliding_windows(
    model: UniFormerV2, training: Sequence[EmbeddedFilm], held_out: Sequence[EmbeddedFilm]
) -> tuple[float, dict[str, float]]:
    """Average mAP on the held-out films, with the threshold that is best on the training films."""
    of_side = [{film.path: window_scores(model, film) for film in side} for side in (training, held_out)]

    def found(side: int, films: Sequence[EmbeddedFilm], threshold: float, windows: int) -> Spans:
        scores = of_side[side]
        return {
            film.path: sliding_spans(averaged(scores[film.path], windows), film, model.labels, threshold)
            for film in films
        }

    settings = [(threshold, windows) for threshold in THRESHOLDS for windows in AVERAGED]
    best = max(settings, key=lambda setting: map_of(training, found(0, training, *setting)))
    return map_of(held_out, found(1, held_out, *best)), {"threshold": best[0], "averaged": best[1]}


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    output, seed, began = arguments.output, arguments.seed, time.perf_counter()
    rows = list(films(arguments.videos, output / "films", arguments.held_out, arguments.films, seed))
    clips = [
        Annotation(clip, clip.parent.name, split="train" if person not in arguments.held_out else "test")
        for person, paths in people_of(arguments.videos).items()
        for clip in paths
    ]
    # the held-out people choose no setting of the probe: two of the training people do
    chooses = arguments.chooses
    inner = [
        Annotation(row.path, row.label, split="val" if re.match("|".join(chooses), row.path.name) else "train")
        for row in clips
        if row.split == "train"
    ]
    size = (arguments.size, arguments.size)
    recipe = ProbeRecipe(arm=str(arguments.image_model), size=size, num_frames=8, seed=seed)
    model = output / f"probe-{seed}" / "best.safetensors"
    if not model.is_file():
        probe(inner, recipe, model.parent, workers=1, progress=True)
    localiser = LocaliserRecipe(window_seconds=1.0, stride_seconds=0.25, seed=seed, epochs=arguments.epochs)
    options = {"workers": 1, "progress": True, "overwrite": True, "feature_cache": output / "embeddings"}
    result = train_localiser(model, rows, localiser, output / f"localiser-{seed}", **options)
    assert result.evaluation is not None
    video = load_model(model)
    cache = EmbeddingCache(video, localiser, output / "embeddings")
    sides = [[row for row in rows if row.split == split] for split in ("train", "test")]
    embedded = [cache.fill(films_of(side), workers=1, progress=False) for side in sides]
    sliding, chosen = sliding_windows(video, *embedded)
    found = {
        "seed": seed,
        "localiser": result.evaluation.scores.average_mean_ap,
        "localiser_by_tiou": result.evaluation.scores.mean_ap,
        "sliding_windows": sliding,
        **chosen,
        "films": [len(side) for side in embedded],
        "minutes_of_film": sum(film.times.duration for side in embedded for film in side) / 60,
        "seconds": time.perf_counter() - began,
    }
    (output / f"result-{seed}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("image_model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=3, help="of each person")
    parser.add_argument("--held-out", nargs="+", default=["lyova", "moshe", "shahar"], help="people")
    parser.add_argument("--chooses", nargs="+", default=["ira", "lena"], help="training people who choose the probe")
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--epochs", type=int, default=40, help="of the localiser")
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
