"""The kernel of an attention is measured once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import architecture, randn, small_model
from uniformerv2 import attention_choice
from uniformerv2.attention_choice import measure, measured_choices
from uniformerv2.model import kernels
from uniformerv2.model.attention import attention_cases, choose_kernels
from uniformerv2.model.kernels import AttentionCase, attend

CASE = AttentionCase(256, 256, 64, training=False)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[AttentionCase]:
    """The cases that were measured; in a cache of the test."""
    cases: list[AttentionCase] = []

    def fused(case: AttentionCase) -> str:
        cases.append(case)
        return "fused"

    monkeypatch.setattr(attention_choice, "measure", fused)
    monkeypatch.setattr(attention_choice, "cache_file", lambda: tmp_path / "cache" / "attention.json")
    return cases


def test_a_case_is_measured_once(measured: list[AttentionCase], monkeypatch: pytest.MonkeyPatch) -> None:
    other = CASE._replace(training=True)
    assert measured_choices([CASE]) == {CASE: "fused"}
    assert measured_choices([CASE, other]) == {CASE: "fused", other: "fused"}
    assert measured == [CASE, other]
    threads = torch.get_num_threads() + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    measured_choices([CASE])
    assert measured == [CASE, other, CASE]


@pytest.mark.parametrize(
    "damage", ["", "[1]", '{"a": ', "[" * 100_000, '{"%s": 3}', '{"%s": {"256x256x64 inference": 1}}']
)
def test_a_damaged_cache_is_measured_again(measured: list[AttentionCase], damage: str) -> None:
    file = attention_choice.cache_file()
    file.parent.mkdir()
    file.write_text(damage.replace("%s", attention_choice._machine()))
    for _ in range(2):
        assert measured_choices([CASE]) == {CASE: "fused"}
    assert measured == [CASE]


def test_a_cache_that_cannot_be_written_stops_nothing(measured: list[AttentionCase]) -> None:
    attention_choice.cache_file().parent.write_text("a file in the place of the folder")
    assert measured_choices([CASE]) == {CASE: "fused"}


def test_small_models_measure_nothing(measured: list[AttentionCase]) -> None:
    assert not attention_cases(architecture("temporal"), 4, (16, 24), training=True)
    assert not measured_choices([])
    assert not attention_choice.cache_file().exists()


def test_measuring_draws_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "WORK", 1)
    before = torch.get_rng_state()
    assert measure(AttentionCase(16, 16, 16, training=True)) in ("fused", "plain")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kernel", ["fused", "plain"])
def test_the_choice_is_computed(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    plain, fused = kernels.plain_attention, torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(kernels, "plain_attention", lambda *x, **y: (used.append("plain"), plain(*x, **y))[1])
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *x, **y: (used.append("fused"), fused(*x, **y))[1]
    )
    x = randn(1, 1, 200, 64).bfloat16()
    attend(x, x, x, scale=0.1, choices={CASE: kernel})  # type: ignore[dict-item]
    attend(x, x, x, scale=0.1)  # nothing was measured
    attend(x.float(), x.float(), x.float(), scale=0.1, choices={CASE: kernel})  # type: ignore[dict-item]
    assert used == [kernel, "plain", "fused"]


def test_all_attentions_of_a_model_get_the_choices() -> None:
    model = small_model("siglip")
    choose_kernels(model, {CASE: "fused"})
    chosen = [module.choices for module in model.modules() if hasattr(module, "choices")]
    assert len(chosen) == 3 + 2 + 1  # blocks, global stages, pooling
    assert all(choices == {CASE: "fused"} for choices in chosen)
