"""The benchmark: what is measured, what is left out, and what stands in its tables. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from helpers import Run
from uniformerv2 import arm, save_model
from uniformerv2.benchmark.measuring import PEERS, Case, Contender, Measured, Times, contenders, machine, product_limit
from uniformerv2.benchmark.reference import MODEL_FILE, load_reference
from uniformerv2.benchmark.run import Report
from uniformerv2.errors import RecipeError
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(image_model: Path) -> UniFormerV2:
    return arm(image_model, num_classes=3, num_frames=4, size=(32, 32))


def case(reference: Path | None = None) -> Case:
    return Case(Path("ours"), Path("official"), reference, 4, (32, 32))


def measured(model: str, precision: str, *seconds: float, batch: int = 1) -> Measured:
    contender = Contender(model, precision, "torch" if model == "ours" else None)  # type: ignore[arg-type]
    return Measured(contender, 10**6, 10**9, 100.0, (Times(batch, seconds),))


def test_without_anything_installed_ours_runs_and_the_rest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("uniformerv2.benchmark.measuring.has_bf16", lambda device: False)
    found, left_out = contenders(case(), CPU, peers=True)
    assert [one.name for one in found] == ["plain fp32", "ours torch fp32"]
    reasons = "\n".join(left_out)
    for missing in ("bf16", "--reference", "openvino not installed", "onnxruntime", "transformers not installed"):
        assert missing in reasons


def test_with_everything_installed_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("uniformerv2.benchmark.measuring.has_bf16", lambda device: True)
    found, left_out = contenders(case(Path("checkout")), CPU, peers=True)
    names = {one.name for one in found}
    assert names >= {"official fp32", "official bf16", "ours torch bf16", "ours openvino int8", "ours onnxruntime fp32"}
    assert names >= {f"{name} fp32" for name in PEERS}
    assert left_out == []


def test_times_have_a_median_and_half_the_distance_of_the_quartiles() -> None:
    times = Times(4, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert times.median == 3.0
    assert times.spread == pytest.approx(1 / 3)


def test_a_report_compares_with_the_official_model_and_with_the_limit() -> None:
    official, ours = measured("official", "fp32", 2.0), measured("ours", "bf16", 0.5)
    report = Report("a machine", "a model", {"fp32": 2e9}, [official, ours, measured("ours", "int8", 0.25)], ["peers"])
    assert report.speedup(ours) == 4.0
    assert report.share_of_limit(official) == 0.5  # 10^9 multiply-adds in 2 s
    assert report.share_of_limit(ours) is None
    table = report.to_markdown()
    assert "| ours torch bf16 | 1.0 M | 1.0 G | 500 ms ± 0.0% | 4.00 | 2.00 clips/s at 1 | 100 MiB | - |" in table
    assert "- peers" in table
    assert json.loads(json.dumps(report.to_json()))["measured"][1]["speedup"] == 4.0
    assert report.to_svg().count("<rect") == 3


def test_without_the_official_model_the_plain_one_is_the_baseline() -> None:
    report = Report("", "", {}, [measured("plain", "fp32", 1.0), measured("ours", "fp32", 0.5)], [])
    assert report.speedup(report.measured[1]) == 2.0
    assert Report("", "", {}, [measured("ours", "fp32", 0.5)], []).speedup(report.measured[1]) is None


def test_the_command_measures_a_checkpoint_in_processes_of_its_own(
    uniformerv2: Run, model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # exporting takes long, and is tested elsewhere
    monkeypatch.setattr("uniformerv2.benchmark.measuring.NEEDED", {"torch": ()})
    monkeypatch.setattr("uniformerv2.benchmark.measuring.has_bf16", lambda device: False)
    monkeypatch.setattr("uniformerv2.benchmark.run.product_limit", lambda dtype, device: 1e11)
    save_model(model, tmp_path / "model.safetensors")
    status, output, _ = uniformerv2(
        "benchmark", tmp_path / "model.safetensors", "--rounds", 1, "--batch-sizes", 1, 2, "--output", tmp_path / "out"
    )
    assert status == 0
    assert "| ours torch fp32 |" in output
    assert "the official model: give a checkout" in output
    rows = json.loads((tmp_path / "out" / "benchmark.json").read_text())["measured"]
    parameters = sum(one.numel() for one in model.parameters())
    assert [row["name"] for row in rows] == ["plain fp32", "ours torch fp32"]
    assert [row["parameters"] for row in rows] == [parameters] * 2
    assert all(row["memory_mib"] > 10 and [one["batch"] for one in row["times"]] == [1, 2] for row in rows)


def test_a_reference_that_is_not_there_is_named(model: UniFormerV2, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file; --reference takes a checkout"):
        load_reference(tmp_path, model, num_frames=4)


def test_a_checkout_is_imported_with_stand_ins_for_what_it_imports(tmp_path: Path) -> None:
    clip = ModelConfig(width=32, depth=2, heads=2, patch_size=16, image_size=(32, 32), global_after=(1,), num_classes=3)
    model = UniFormerV2(clip)
    file = tmp_path / MODEL_FILE
    file.parent.mkdir(parents=True)
    file.write_text(
        "from timm.models.layers import DropPath\n"
        "import slowfast.utils.logging as logging\n"
        "from torch import nn\n"
        "logging.get_logger(__name__).info('quiet')\n"
        "class VisionTransformer(nn.Module):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__()\n"
        "        self.options, self.drop = options, DropPath(0.1)\n"
        "    def load_state_dict(self, state):\n"
        "        self.loaded = state\n"
    )
    reference = load_reference(tmp_path, model, num_frames=4)
    assert reference.options["t_size"] == 4
    assert reference.options["return_list"] == list(model.config.global_after)
    assert "transformer.resblocks.0.attn.in_proj_weight" in reference.loaded
    assert importlib.util.find_spec("slowfast") is None


def test_the_machine_and_its_limit_are_told() -> None:
    assert torch.__version__ in machine()
    assert product_limit(torch.float32, CPU, repeats=1) > 0
