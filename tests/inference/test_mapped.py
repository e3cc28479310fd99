"""Weights that were read from a mapped file leave memory again; no other weight is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from uniformerv2 import ModelConfig, load_model, optimize, save_model
from uniformerv2.inference import mapped as pages
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.optimize import in_torch
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.files import read_tensors, write_safetensors

pytestmark = pytest.mark.skipif(
    not pages.PAGEMAP.exists(), reason="this system does not tell which pages are those of a file"
)

MIB = 2**20
WEIGHTS = 16 * MIB  # bytes

# bytes that making a model fast takes at its peak, beyond what was there before
PEAK = """
import sys
from uniformerv2 import load_model
from uniformerv2.inference.optimize import in_torch

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))

model = load_model(sys.argv[1])
before = status("VmRSS")
fast = in_torch(model, sys.argv[2])
print(status("VmHWM") - before)
"""


def resident() -> int:
    """Bytes of files that this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


def mapped(path: Path) -> Tensor:
    write_safetensors(path, {"weight": torch.arange(WEIGHTS // 4, dtype=torch.float32)}, {})
    return read_tensors(path)[1]["weight"]


def holder(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    return module


def given_back(tensor: Tensor, change: Callable[[Tensor], object] = lambda tensor: None) -> int:
    """Bytes that leave memory, of a tensor that was read and then changed; what it holds must stay."""
    change(tensor)
    expected = tensor.clone()
    before = resident()
    release_mapped_weights(holder(tensor))
    left = before - resident()
    assert torch.equal(tensor, expected)
    return left


def test_weights_of_a_file_leave_memory_and_come_back(tmp_path: Path) -> None:
    assert given_back(mapped(tmp_path / "weights.safetensors")) > 0.9 * WEIGHTS


def test_weights_that_changed_stay_in_memory(tmp_path: Path) -> None:
    tensor = mapped(tmp_path / "weights.safetensors")
    assert given_back(tensor, lambda tensor: tensor[-1].fill_(-1)) < 0.1 * WEIGHTS
    assert tensor[-1] == -1


def test_weights_of_no_file_stay_in_memory() -> None:
    assert given_back(torch.arange(WEIGHTS // 4, dtype=torch.float32)) < 0.1 * WEIGHTS


def test_where_the_system_does_not_tell_all_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = mapped(tmp_path / "weights.safetensors")
    monkeypatch.setattr(pages, "PAGEMAP", tmp_path / "pagemap")
    assert given_back(tensor) < 0.1 * WEIGHTS


def test_a_model_that_is_made_fast_keeps_its_changed_weights(tmp_path: Path) -> None:
    config = ModelConfig(width=64, depth=2, heads=2, global_after=(1,), num_classes=3)
    save_model(UniFormerV2(config), tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors")
    with torch.no_grad():
        for parameter in model.backbone.blocks[1].parameters():
            parameter += 1
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_torch(model, "fp32")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    save_model(UniFormerV2(ModelConfig(width=384, depth=12, heads=6, global_after=(11,), num_classes=3)), path)
    return path


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1.0), ("bf16", 0.5)])
def test_a_model_is_made_fast_in_little_more_than_the_memory_of_the_new_one(
    checkpoint: Path, precision: str, share: float
) -> None:
    ran = subprocess.run([sys.executable, "-c", PEAK, checkpoint, precision], capture_output=True, check=True)
    # 1.24 and 0.77 were seen: a block on its way, and what the C library does not give back at once; with the pages of
    # the file in memory, or with all blocks folded before the first is packed, more than 2 and 1.6
    assert int(ran.stdout) < (share + 0.5) * checkpoint.stat().st_size


def test_a_comparison_does_not_leave_the_plain_model_in_memory(checkpoint: Path) -> None:
    before = resident()
    model = load_model(checkpoint)
    clip = torch.randn(1, 3, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    assert optimize(model, validation_clips=[clip]).comparison is not None
    assert resident() - before < 0.2 * checkpoint.stat().st_size
    with torch.inference_mode():
        model(clip)
    assert resident() - before > 0.8 * checkpoint.stat().st_size
