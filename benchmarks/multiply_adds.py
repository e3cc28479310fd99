"""Parameters and multiply-adds of the released experiments, ours beside the official ones, as a Markdown table.

    python benchmarks/multiply_adds.py STRUCTURES.json

STRUCTURES.json holds under `experiments` for each name: `structure` ("backbone|layout|stages|variant"), `num_classes`,
`frames`, `crop`, `params` and `gmacs_per_view` of the official implementation. Counted on the meta device: nothing is
computed. Experiments that differ in their classes only share a row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from uniformerv2 import ModelConfig, named_config
from uniformerv2.model.counting import count_multiply_adds, count_parameters

SIZES = {"uniformerv2_b16": "B/16", "uniformerv2_l14": "L/14", "uniformerv2_l14_336": "L/14@336"}


def config_of(structure: str, num_classes: int) -> tuple[str, ModelConfig]:
    backbone, layout, _, variant = structure.split("|")
    frozen = variant == "frozen"
    name = f"{SIZES[backbone]} {layout}" + (", frozen" if frozen else "")
    return name, named_config(SIZES[backbone], layout, num_classes=num_classes, mix_class_token=not frozen)


def main(path: str) -> None:
    rows: dict[tuple[str, int, int], list[tuple[str, dict, ModelConfig]]] = {}  # type: ignore[type-arg]
    for experiment, told in json.loads(Path(path).read_text())["experiments"].items():
        name, config = config_of(told["structure"], told["num_classes"])
        rows.setdefault((name, told["frames"], told["crop"]), []).append((experiment, told, config))
    print("| model | clip | experiments | parameters (M) | official G multiply-adds | ours | saved |")
    print("|---|---|---|---|---|---|---|")
    for (name, frames, crop), group in rows.items():
        assert all(count_parameters(config) == told["params"] for _, told, config in group)
        _, told, config = group[0]
        ours, official = count_multiply_adds(config, frames, (crop, crop)) / 1e9, told["gmacs_per_view"]
        sets = ", ".join(sorted({experiment.split("/")[1] for experiment, _, _ in group}))
        low, high = (f"{bound(told['params'] for _, told, _ in group) / 1e6:.1f}" for bound in (min, max))
        parameters = low if low == high else f"{low} to {high}"
        figures = f"{parameters} | {official:.2f} | {ours:.2f} | {100 * (1 - ours / official):.1f} %"
        print(f"| {name} | {frames}x{crop} | {len(group)}: {sets} | {figures} |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
