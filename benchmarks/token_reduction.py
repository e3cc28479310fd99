"""What fewer tokens cost and save: accuracy on people that no model has seen, time at the size of the Kinetics models.

    python benchmarks/token_reduction.py WEIZMANN RUNS [--rounds 5]

RUNS is the folder of the layout "scene" that benchmarks/weizmann.py has written: a run for each person that was left
out, whose model is asked about that person's videos, with one view. Times are of a B/16 with 8 frames of 224 and random
weights on videos of WEIZMANN, alternating, medians; how much does not change is up to the videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import cast

import torch
from timing import alternate, machine
from torch import Tensor

from uniformerv2 import Predictor, Reduction, load_model, named_config, optimize
from uniformerv2.data.annotations import Annotation, read_annotations
from uniformerv2.inference.comparison import ANYTHING
from uniformerv2.inference.precision import Precision, has_bf16
from uniformerv2.model.unchanged import UnchangedTransformer
from uniformerv2.model.uniformerv2 import UniFormerV2

CURVE: tuple[Reduction | None, ...] = (
    None,
    *(Reduction("merge", share) for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)),
    *(Reduction("unchanged", threshold) for threshold in (0.01, 0.02, 0.03, 0.05)),
)


@dataclass(frozen=True)
class Seen:
    """What the models said of all videos."""

    logits: Tensor  # (videos, classes)
    right: Tensor  # (videos,)
    computed: float  # share of the patches that is computed in the first block


@torch.inference_mode()
def see(runs: Path, rows: Sequence[Annotation], root: Path, reduction: Reduction | None) -> Seen:
    logits, right, computed = [], [], []
    for run in sorted(path for path in runs.iterdir() if path.is_dir()):
        own = [row for row in rows if Path(row.path).stem.split("_")[0] == run.name]
        predictor = Predictor(load_model(str(run / "last.safetensors")), reduction=reduction)
        for row in own:
            clip = predictor.views(root / row.path)
            logits.append(predictor.optimized(clip)[0])
            right.append(predictor.model.labels[int(logits[-1].argmax())] == row.label)
            computed.append(share_computed(predictor.model, clip))
    return Seen(torch.stack(logits), torch.tensor(right), sum(computed) / len(computed))


def share_computed(model: UniFormerV2, clip: Tensor) -> float:
    backbone = cast(object, model.backbone)
    return float(backbone.changed(clip).float().mean()) if isinstance(backbone, UnchangedTransformer) else 1.0


@torch.inference_mode()
def milliseconds(videos: Iterable[Path], precision: Precision, rounds: int) -> dict[str, float]:
    """Of one clip, by reduction."""
    torch.manual_seed(0)
    model = UniFormerV2(named_config("B/16"))
    made = {str(one): optimize(model, precision=precision, reduction=one, limits=ANYTHING) for one in CURVE}
    clips = [Predictor(model).views(video) for video in videos]
    turns = {name: cycle(clips) for name in made}
    ways = {name: (lambda name=name: made[name](next(turns[name]))) for name in made}
    # every measurement is of all clips once
    return alternate(ways, repeats=rounds, inner=len(clips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="WEIZMANN", type=Path)
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows = read_annotations(given.data)
    seen = {str(one): see(given.runs, rows, given.data, one) for one in CURVE}
    plain = seen["None"]
    videos = [given.data / row.path for row in rows if "daria" in str(row.path)][:2]
    precisions: list[Precision] = ["fp32", "bf16"] if has_bf16(torch.device("cpu")) else ["fp32"]
    times = {precision: milliseconds(videos, precision, given.rounds) for precision in precisions}
    print(machine())
    timed = [f"{precision}, ms | times" for precision in precisions]
    print(f"| reduction | right of {len(rows)} | changed | logits | patches computed | {' | '.join(timed)} |")
    print("|---" * (5 + 2 * len(precisions)) + "|")
    for name, one in seen.items():
        changed = int((one.logits.argmax(-1) != plain.logits.argmax(-1)).sum())
        deviation = float((one.logits - plain.logits).abs().max() / plain.logits.abs().max())
        costs = [f"{times[kind][name]:.0f} | {times[kind]['None'] / times[kind][name]:.2f}" for kind in precisions]
        cells = [name, f"{int(one.right.sum())}", f"{changed}", f"{deviation:.1%}", f"{one.computed:.0%}", *costs]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
