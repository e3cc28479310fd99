from __future__ import annotations

import pytest
import torch

from uniformerv2.tasks.mixing import Mixing, draw_rectangle, mix

SHAPE = (6, 3, 2, 20, 30)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def clips() -> torch.Tensor:
    """Every clip has its number everywhere."""
    return torch.arange(6.0).view(6, 1, 1, 1, 1).expand(SHAPE).contiguous()


def test_mixup_blends_every_clip_with_one_other() -> None:
    given = torch.randn(SHAPE)
    before = given.clone()
    mixed, others, kept = mix(given, Mixing(mixup=0.8))
    assert 0 < kept < 1
    assert sorted(others.tolist()) == list(range(6))
    torch.testing.assert_close(mixed, kept * given + (1 - kept) * given[others])
    assert torch.equal(given, before)


def test_cutmix_replaces_one_rectangle_of_all_frames_and_its_area_is_the_share() -> None:
    for _ in range(20):
        given = clips()
        mixed, others, kept = mix(given, Mixing(cutmix=1.0))
        foreign = mixed[:, 0, 0] != given[:, 0, 0]  # (batch, height, width)
        changed = others != torch.arange(6)
        assert not foreign[~changed].any()
        for number in changed.nonzero().flatten().tolist():
            assert foreign[number].float().mean().item() == pytest.approx(1 - kept, abs=1e-6)
            rows, columns = foreign[number].any(1), foreign[number].any(0)
            assert int(rows.sum() * columns.sum()) == int(foreign[number].sum())  # a rectangle
        expected = torch.where(foreign[:, None, None], given[others], given)
        assert torch.equal(mixed, expected)
        assert torch.equal(given, clips())


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    for alpha in (0.2, 1.0):
        kept = torch.tensor([mix(torch.zeros(2, 3, 1, 2, 2), Mixing(mixup=alpha)).kept for _ in range(3000)])
        assert kept.mean().item() == pytest.approx(0.5, abs=0.03)
        assert kept.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)  # of Beta(alpha, alpha)


def test_both_take_turns_by_chance_and_neither_leaves_clips_alone() -> None:
    cut = 0
    for _ in range(400):
        mixed = mix(clips(), Mixing(mixup=1.0, cutmix=1.0))
        cut += bool((mixed.clips == mixed.clips.round()).all())
    assert 150 < cut < 250
    alone = mix(given := clips(), Mixing())
    assert alone.clips is given
    assert alone.kept == 1.0


def test_a_rectangle_has_the_aspect_of_the_frame_and_lies_anywhere() -> None:
    centres = set()
    for _ in range(300):
        rows, columns = draw_rectangle((20, 30), 0.25)
        assert rows.stop - rows.start <= 10
        assert columns.stop - columns.start <= 14  # an even number of 15
        assert 0 <= rows.start < rows.stop <= 20
        assert 0 <= columns.start < columns.stop <= 30
        centres.add((rows.stop == 20, rows.start == 0, columns.stop == 30, columns.start == 0))
    assert len(centres) == 9  # in the middle, at every edge, in every corner
