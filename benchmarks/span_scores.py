"""How long scoring takes at the size of ActivityNet's validation: made-up spans of 4,926 videos, 100 predictions each.

    python benchmarks/span_scores.py [--opentad]

Each video has one of 200 classes and one to three annotations of it. Two thirds of the predictions are annotations
with moved borders, the others lie anywhere; three quarters have the right class. Files are read and scored in one
thread; on a machine that does something else, too, processor time is what tells.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from timing import machine

from uniformerv2.spans.scored_files import read_ground_truth, read_predictions
from uniformerv2.spans.scoring import score_spans

VIDEOS, PREDICTIONS, CLASSES, SEED, ROUNDS = 4926, 100, 200, 0, 5


def made_up(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ground truth and predictions in ActivityNet's form."""
    database, results = {}, {}
    for number in range(VIDEOS):
        duration, label = draw.uniform(20, 240), f"class {number % CLASSES}"
        annotations = [{"segment": _segment(draw, duration), "label": label} for _ in range(draw.choice((1, 1, 2, 3)))]
        database[f"v{number}"] = {"subset": "validation", "duration": duration, "annotations": annotations}
        results[f"v{number}"] = [
            {
                "segment": _moved(draw, draw.choice(annotations)["segment"])
                if draw.random() < 2 / 3
                else _segment(draw, duration),
                "label": label if draw.random() < 3 / 4 else f"class {draw.randrange(CLASSES)}",
                "score": draw.random(),
            }
            for _ in range(PREDICTIONS)
        ]
    return {"database": database}, {"results": results}


def _segment(draw: random.Random, duration: float) -> list[float]:
    return sorted((draw.uniform(0, duration), draw.uniform(0, duration)))


def _moved(draw: random.Random, segment: list[float]) -> list[float]:
    length = segment[1] - segment[0]
    return sorted(time + draw.gauss(0, 0.15) * length for time in segment)


def main() -> None:
    opentad = "--opentad" in sys.argv[1:]
    print(f"{machine()}; median of {ROUNDS}, seed {SEED}")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("ground_truth.json", "predictions.json")]
        for file, content in zip(files, made_up(random.Random(SEED)), strict=True):
            file.write_text(json.dumps(content))
        rounds: list[tuple[float, ...]] = []
        for _ in range(ROUNDS):
            times = [_now()]
            annotated, predicted = read_ground_truth(files[0])["validation"], read_predictions(files[1])
            times.append(_now())
            scores = score_spans(annotated, predicted, opentad=opentad)
            times.append(_now())
            rounds.append(tuple(end - start for a, b in pairwise(times) for start, end in zip(a, b, strict=True)))
    read, read_cpu, scored, scored_cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
    counts = scores.counts
    print(f"{counts.videos} videos, {counts.annotations} annotations, {counts.predictions} predictions")
    print(f"average mAP {scores.average_mean_ap:.4f}")
    print(f"read in {read:.1f} s ({read_cpu:.1f} s of processor), scored in {scored:.1f} s ({scored_cpu:.1f} s)")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
