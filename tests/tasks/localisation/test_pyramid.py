"""The head sees what it should see: a band of neighbours, nothing behind the end of a film, and time in levels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from uniformerv2.errors import RecipeError
from uniformerv2.tasks.localisation.pyramid import MaskedConv, SpanHead, local_attention, places
from uniformerv2.tasks.localisation.recipe import PyramidConfig

SMALL = PyramidConfig(width=16, heads=2, radius=3, blocks=1, levels=3, dropout=0.0)


@pytest.mark.parametrize("count", [1, 3, 7, 20])
@pytest.mark.parametrize("radius", [1, 4])
def test_local_attention_is_attention_with_all_other_weights_left_out(count: int, radius: int) -> None:
    queries, keys, values = torch.randn(
        3, 2, 2, count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    valid = torch.arange(count) < torch.tensor([[count], [max(1, count - 2)]])
    weights = (queries @ keys.transpose(-1, -2) / math.sqrt(5)).exp()
    near = (torch.arange(count)[:, None] - torch.arange(count)).abs() <= radius
    weights = weights * (near & valid[:, None, None, :])
    expected = weights / weights.sum(-1, keepdim=True) @ values
    found = local_attention(queries, keys, values, valid, radius=radius)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, valid[1]], expected[1][:, valid[1]])


def test_places_are_at_every_window_every_second_and_every_fourth() -> None:
    found = places(5, PyramidConfig(levels=3, reach=4))
    assert found.position.tolist() == [0, 1, 2, 3, 4, 0, 2, 4, 0, 4]
    assert found.stride.tolist() == [1] * 5 + [2] * 3 + [4] * 2
    assert list(zip(found.nearest.tolist(), found.farthest.tolist(), strict=True)) == (
        [(0, 4)] * 5 + [(4, 8)] * 3 + [(8, math.inf)] * 2
    )


def test_what_is_found_in_a_film_does_not_depend_on_the_other_films_of_its_batch() -> None:
    torch.manual_seed(0)
    head = SpanHead(SMALL, embedding_width=6, num_classes=2).eval()
    embeddings = torch.randn(2, 13, 6)
    valid = torch.arange(13) < torch.tensor([[13], [6]])
    together = head(embeddings, valid)
    alone = head(embeddings[1:, :6], valid[1:, :6])
    kept = together.valid[1]
    assert kept.sum() == len(places(6, SMALL).position)
    torch.testing.assert_close(together.logits[1, kept], alone.logits[0])
    torch.testing.assert_close(together.distances[1, kept], alone.distances[0])
    assert (together.distances >= 0).all()
    scores = head(torch.zeros(1, 4, 6), torch.ones(1, 4, dtype=torch.bool)).logits.sigmoid()
    assert scores.mean() < 0.05  # an untrained head says that nearly nothing happens


def test_scale_and_offset_of_embeddings_mean_nothing() -> None:
    """Models differ in both, and the head has to learn from any."""
    torch.manual_seed(0)
    head = SpanHead(SMALL, embedding_width=6, num_classes=2).eval()
    embeddings, valid = torch.randn(1, 9, 6), torch.ones(1, 9, dtype=torch.bool)
    torch.testing.assert_close(head(100 * embeddings + 7, valid), head(embeddings, valid), rtol=1e-3, atol=1e-3)


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(RecipeError, match="divisible by heads 4, got 6"):
        PyramidConfig(width=6)
    with pytest.raises(RecipeError, match="levels must be positive, got 0"):
        PyramidConfig(levels=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 6])
def test_a_masked_convolution_is_the_convolution_of_what_is_valid(stride: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = MaskedConv(6, 6, stride=stride, groups=groups)
    x, valid = torch.randn(2, 7, 6, generator=generator), torch.arange(7) < torch.tensor([[7], [4]])
    seen = (x * valid[..., None]).transpose(1, 2)
    expected = F.conv1d(seen, layer.weight, layer.bias, stride=stride, padding=1, groups=groups).transpose(1, 2)
    torch.testing.assert_close(layer(x, valid), expected)


def test_no_level_sees_another_through_the_towers() -> None:
    torch.manual_seed(0)
    config = PyramidConfig(width=16, heads=2, radius=3, blocks=0, levels=2, dropout=0.0)
    head = SpanHead(config, embedding_width=8, num_classes=3)
    with torch.no_grad():
        torch.nn.init.normal_(head.classes.weight)
        head.level_norms[1].weight.zero_()
        head.level_norms[1].bias.fill_(0.1)  # the second level gives the towers this, whatever it sees
    embeddings = torch.randn(2, 9, 8)
    found = head(embeddings, torch.ones(2, 9, dtype=torch.bool))
    assert not torch.allclose(found.logits[0, :9], found.logits[1, :9])
    torch.testing.assert_close(found.logits[0, 9:], found.logits[1, 9:])
