"""The folders of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runs.written import RECIPE


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a run under a name: records, values of the recipe, the evaluation of a finished one."""

    def write(
        name: str = "run",
        records: Sequence[dict[str, Any]] = (),
        *,
        recipe: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        changed = {part: values | (recipe or {}).get(part, {}) for part, values in RECIPE.items()}
        (folder / "recipe.json").write_text(json.dumps(changed))
        (folder / "train.csv").write_text("path,label,start,end\n" + "a.mp4,jump,,\n" * 22)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if evaluation:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return write
