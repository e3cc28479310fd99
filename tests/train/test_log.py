from __future__ import annotations

import json
from pathlib import Path

from uniformerv2.train.log import MetricsFile, read_metrics


def test_records_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, finished_epochs=0)
    metrics.write({"kind": "step", "epoch": 1, "loss": 0.1})
    assert read_metrics(path) == [{"kind": "step", "epoch": 1, "loss": 0.1}]
    metrics.close()


def test_epochs_that_run_again_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": kind, "epoch": epoch} for epoch in (1, 2, 3) for kind in ("step", "epoch")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:5]) + '{"kind": "st', encoding="utf-8")
    assert read_metrics(path) == records[:5]  # the half line of a killed run is no record
    metrics = MetricsFile(path, finished_epochs=2)
    metrics.write({"kind": "step", "epoch": 3, "again": True})
    metrics.close()
    assert read_metrics(path) == [*records[:4], {"kind": "step", "epoch": 3, "again": True}]
