"""Weights that are mapped from a file leave memory; no other weight is touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import randn
from uniformerv2 import ModelConfig, load_model, optimize, save_model
from uniformerv2.inference import mapped
from uniformerv2.inference import optimize as optimizing
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.optimize import in_torch
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.files import read_tensors, write_safetensors

pytestmark = pytest.mark.skipif(
    not mapped.PAGEMAP.exists(), reason="this system does not tell which pages a file backs"
)

WEIGHTS = 16 * 2**20  # bytes


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    counts, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(f" {file}")
        elif counts and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.fixture
def tensor(file: Path) -> Tensor:
    """Mapped from the file."""
    write_safetensors(file, {"weight": torch.arange(WEIGHTS // 4, dtype=torch.float32)}, {})
    return read_tensors(file)[1]["weight"]


def left_after_release(tensor: Tensor, file: Path) -> float:
    """The share of the file that is in memory, after its tensor was read and released; the tensor must not change."""
    expected = tensor.clone()
    assert resident(file) > 0.9 * WEIGHTS
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    release_mapped_weights(module)
    left = resident(file) / WEIGHTS
    assert torch.equal(tensor, expected)
    return left


def test_weights_of_a_file_leave_memory_and_are_read_again(tensor: Tensor, file: Path) -> None:
    assert left_after_release(tensor, file) < 0.1


def test_weights_that_changed_stay_in_memory(tensor: Tensor, file: Path) -> None:
    tensor[-1] = -1
    assert left_after_release(tensor, file) > 0.9
    assert tensor[-1] == -1


def test_weights_stay_where_the_system_does_not_tell(
    tensor: Tensor, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "PAGEMAP", tmp_path / "pagemap")
    assert left_after_release(tensor, file) > 0.9


def test_weights_that_no_file_backs_keep_their_values() -> None:
    linear = nn.Linear(2048, 2048)
    expected = linear.weight.clone()
    release_mapped_weights(linear)
    assert torch.equal(linear.weight, expected)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    config = ModelConfig(width=192, depth=12, heads=3, image_size=(64, 64), global_after=(11,), num_classes=3)
    save_model(UniFormerV2(config), path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_is_made_fast_with_a_block_of_the_file_in_memory(
    checkpoint: Path, precision: InferencePrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def watched(model: nn.Module) -> None:
        for _ in range(2):
            shares.append(resident(checkpoint) / checkpoint.stat().st_size)
            release_mapped_weights(model)

    model = load_model(checkpoint)
    release_mapped_weights(model)  # what loading has read
    monkeypatch.setattr(optimizing, "release_mapped_weights", watched)
    in_torch(model, precision)
    assert len(shares) == 2 * (12 + 1 + 1)  # blocks, a global block, the rest
    assert max(shares) < 0.2
    assert max(shares[1::2]) < 0.05


def test_a_model_that_is_made_fast_keeps_its_changed_weights(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        for parameter in model.backbone.blocks[1].parameters():
            parameter += 1
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_torch(model, "fp32")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_comparison_does_not_leave_the_plain_model_in_memory(checkpoint: Path) -> None:
    model, clip, size = load_model(checkpoint), randn(1, 3, 1, 64, 64), checkpoint.stat().st_size
    assert optimize(model, validation_clips=[clip]).comparison is not None
    assert resident(checkpoint) < 0.2 * size
    with torch.inference_mode():
        model(clip)
    assert resident(checkpoint) > 0.8 * size
