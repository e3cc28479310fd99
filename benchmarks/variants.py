"""What fast variants of a model change, asked about people that it has never seen, and what fewer tokens save.

    python benchmarks/variants.py changes WEIZMANN RUNS
    python benchmarks/variants.py times WEIZMANN [--rounds 5]

changes: RUNS is the folder of a layout that benchmarks/weizmann.py has written, a run for each person left out.
Each model is asked about that person's videos with one view, plain and in each variant; int8 is calibrated on videos of
three other people. "changed" counts the videos whose most likely class is another one than the plain model's.

times: a B/16 with 8 frames of 224 and random weights on two videos of WEIZMANN, alternating, medians. How much stands
still is up to the videos.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from timing import alternate, machine
from torch import Tensor
from weizmann import person_of

from uniformerv2 import Predictor, Reduction, load_model, named_config, optimize
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.inference.optimize import NO_LIMITS, Backend, Classifier
from uniformerv2.inference.precision import InferencePrecision, has_bf16
from uniformerv2.inference.reduction import SkippingTransformer, reduce_tokens
from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2

REDUCTIONS = (
    *(Reduction("merge", share) for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)),
    *(Reduction("unchanged", threshold) for threshold in (0.01, 0.02, 0.03, 0.05)),
)


@dataclass(frozen=True)
class Variant:
    """What `optimize` is asked for."""

    precision: InferencePrecision
    backend: Backend = "torch"
    reduction: Reduction | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.backend, self.precision, self.reduction) if part)

    def of(self, model: UniFormerV2, calibration: Sequence[Tensor]) -> Classifier:
        return optimize(
            model,
            precision=self.precision,
            backend=self.backend,
            reduction=self.reduction,
            calibration_clips=calibration,
            limits=NO_LIMITS,
        )


def variants(config: ModelConfig) -> list[Variant]:
    """All that this machine can run of an architecture."""
    narrow = precisions()
    found = [Variant(precision) for precision in narrow]
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        found += [Variant(precision, "openvino") for precision in (*narrow, "int8")]
    if sharing_obstacle(config):
        return found
    return found + [Variant(precision, reduction=one) for one in REDUCTIONS for precision in narrow]


def folds(runs: Path, rows: Sequence[Annotation]) -> Iterator[tuple[UniFormerV2, list[Annotation], list[Annotation]]]:
    """A model, the videos of the person that it has not seen, and those of three others."""
    people = sorted({person_of(row.path) for row in rows})
    for number, person in enumerate(people):
        others = [people[(number + step) % len(people)] for step in (1, 2, 3)]
        model = load_model(str(runs / person / "last.safetensors"))
        yield (
            model,
            [row for row in rows if person_of(row.path) == person],
            [row for row in rows if person_of(row.path) in others],
        )


@torch.inference_mode()
def changes(data: Path, runs: Path) -> None:
    rows = read_annotations(data)
    logits: dict[str, list[Tensor]] = {}
    right: dict[str, int] = {}
    for model, own, others in folds(runs, rows):
        read = Predictor(model).clips
        clips, calibration = ([read(data / row.path) for row in some] for some in (own, others))
        ways: dict[str, Classifier] = {"plain": model}
        for variant in variants(model.config):
            ways[str(variant)] = variant.of(model, calibration if variant.precision == "int8" else ())
        for name, way in ways.items():
            said = torch.cat([way(clip) for clip in clips])
            logits.setdefault(name, []).append(said)
            named = [model.labels[number] for number in said.argmax(-1).tolist()]
            right[name] = right.get(name, 0) + sum(label == row.label for label, row in zip(named, own, strict=True))
    print(f"{machine()}\n| variant | right of {len(rows)} | changed | logits, of the largest |\n|---|---|---|---|")
    plain = torch.cat(logits["plain"])
    for name, parts in logits.items():
        said = torch.cat(parts)
        changed = int((said.argmax(-1) != plain.argmax(-1)).sum())
        print(f"| {name} | {right[name]} | {changed} | {(said - plain).abs().max() / plain.abs().max():.1%} |")
    print(f"computed patches: {shares_computed(data, runs, rows)}")


def shares_computed(data: Path, runs: Path, rows: Sequence[Annotation]) -> str:
    """How many patches "unchanged" leaves, on the average of all videos."""
    model = next(folds(runs, rows))[0]
    if sharing_obstacle(model.config):
        return "all"
    clips = [Predictor(model).clips(data / row.path) for row in rows]
    found = []
    for one in REDUCTIONS:
        backbone = reduce_tokens(model, one).backbone if one.method == "unchanged" else None
        if isinstance(backbone, SkippingTransformer):
            share = torch.stack([backbone.changed(clip).float().mean() for clip in clips]).mean()
            found.append(f"{one} {share:.0%}")
    return ", ".join(found)


@torch.inference_mode()
def times(data: Path, rounds: int) -> None:
    torch.manual_seed(0)
    model = UniFormerV2(named_config("B/16")).eval()
    reductions = (None, *REDUCTIONS)
    videos = [data / row.path for row in read_annotations(data)][:2]
    clips = [Predictor(model).clips(video) for video in videos]
    print(f"{machine()}, {', '.join(video.name for video in videos)}")
    for precision in precisions():
        made = {str(one): Variant(precision, reduction=one).of(model, ()) for one in reductions}
        found = alternate({name: in_turn(way, clips) for name, way in made.items()}, repeats=rounds, inner=len(clips))
        for name, milliseconds in found.items():
            print(f"| {precision} | {name} | {milliseconds:.0f} | {found['None'] / milliseconds:.2f} |", flush=True)


def in_turn(way: Classifier, clips: Sequence[Tensor]) -> Callable[[], Tensor]:
    turns = cycle(clips)
    return lambda: way(next(turns))


def precisions() -> list[InferencePrecision]:
    return ["fp32", "bf16"] if has_bf16(torch.device("cpu")) else ["fp32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    asked = parts.add_parser("changes")
    timed = parts.add_parser("times")
    for part in (asked, timed):
        part.add_argument("data", metavar="WEIZMANN", type=Path)
    asked.add_argument("runs", metavar="RUNS", type=Path)
    timed.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.part == "changes":
        changes(given.data, given.runs)
    else:
        times(given.data, given.rounds)


if __name__ == "__main__":
    main()
