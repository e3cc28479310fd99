"""The order of training epochs, however many processes share them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from uniformerv2.data.order import EpochSampler, inverse_frequencies


def keys(sampler: EpochSampler, epoch: int, *, first_batch: int = 0) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch, first_batch=first_batch)
    return list(sampler)


def share(length: int, batch_size: int, world: int, epoch: int) -> list[list[tuple[int, int]]]:
    """The keys of each process."""
    samplers = [EpochSampler(length, seed=3, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    shares = [keys(sampler, epoch) for sampler in samplers]
    assert [len(share) for share in shares] == [len(sampler) for sampler in samplers]
    return shares


def test_an_epoch_is_shuffled_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, seed=seed)
        assert len(sampler) == 50
        return keys(sampler, epoch)

    assert order(0, 3) == order(0, 3)
    assert sorted(row for row, _ in order(0, 3)) == list(range(50))
    others = [order(0, 3), order(0, 4), order(1, 3)]
    assert len({tuple(row for row, _ in other) for other in others}) == 3
    assert len({tuple(draw for _, draw in other) for other in others}) == 3
    assert len({draw for _, draw in order(0, 3)}) == 50


@pytest.mark.parametrize(("length", "batch_size", "world", "each"), [(50, 4, 3, 16), (48, 4, 3, 16), (7, 4, 2, 3)])
def test_processes_get_equally_many_and_nothing_twice(length: int, batch_size: int, world: int, each: int) -> None:
    shares = share(length, batch_size, world, epoch=2)
    assert [len(one) for one in shares] == [each] * world
    rows = [row for one in shares for row, _ in one]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(length))


def test_a_step_of_all_processes_is_a_batch_of_one() -> None:
    alone = share(50, 12, 1, epoch=4)[0]
    shares = share(50, 4, 3, epoch=4)
    steps = [[key for one in shares for key in one[step * 4 : step * 4 + 4]] for step in range(4)]
    assert [alone[step * 12 : step * 12 + 12] for step in range(4)] == steps


def test_dropped_rows_rotate() -> None:
    sampler = EpochSampler(10, seed=0, batch_size=3, world=1)  # one row of ten
    assert sampler.num_dropped == 1
    dropped = Counter(row for epoch in range(10) for row in set(range(10)) - {row for row, _ in keys(sampler, epoch)})
    assert dropped == Counter(range(10))


def test_an_epoch_goes_on_where_it_was_left() -> None:
    sampler = EpochSampler(50, seed=0, batch_size=4, rank=1, world=2)
    whole = keys(sampler, 5)
    assert keys(sampler, 5, first_batch=2) == whole[8:]
    assert keys(sampler, 5, first_batch=6) == []
    assert len(sampler) == len(whole)  # of the epoch, not of what is left of it
    assert keys(sampler, 6) != whole


def test_a_row_is_drawn_anew_in_each_epoch_and_alike_in_every_division() -> None:
    draws = [dict(keys(EpochSampler(40, seed=0, batch_size=size), epoch)) for size, epoch in ((1, 0), (4, 0), (4, 1))]
    assert draws[0] == draws[1]
    assert all(draws[0][row] != draws[2][row] for row in range(40))
    assert len(set(draws[0].values())) == 40


def test_fixed_draws_take_turns() -> None:
    sampler = EpochSampler(20, seed=0, batch_size=4, views=3)
    epochs = [dict(keys(sampler, epoch)) for epoch in range(1, 7)]
    assert epochs[:3] == epochs[3:]
    assert all(len({epoch[row] for epoch in epochs}) == 3 for row in range(20))
    assert list(epochs[0]) != list(epochs[3])  # the order is a new one all the same
    assert epochs[1].items() == {sampler.key(row, 2) for row in range(20)}


def test_what_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="2 videos cannot be divided among 3"):
        EpochSampler(2, seed=0, world=3)
    with pytest.raises(ValueError, match="rank must lie in"):
        EpochSampler(9, seed=0, rank=3, world=3)


# --- rows that are drawn by their weights


def weighted(counts: dict[str, int], power: float, **options: Any) -> tuple[list[str], EpochSampler]:
    """The labels of all rows, and a sampler that weighs them."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    weights = inverse_frequencies(labels, power=power)
    return labels, EpochSampler(len(labels), weights=[weights[label] for label in labels], **{"seed": 3, **options})


@pytest.mark.parametrize(("power", "wanted"), [(1, {"a": 22, "b": 22, "c": 22}), (0.5, {"a": 38.5, "b": 22, "c": 5.5})])
def test_rare_classes_are_drawn_as_often_as_their_weights_say(power: float, wanted: dict[str, float]) -> None:
    labels, sampler = weighted({"a": 49, "b": 16, "c": 1}, power)
    epochs = [[labels[row] for row, _ in keys(sampler, epoch)] for epoch in range(200)]
    assert {len(epoch) for epoch in epochs} == {66}  # of the same length as without weights
    for label, share in wanted.items():
        assert sum(epoch.count(label) for epoch in epochs) / 200 == pytest.approx(share, rel=0.05)


def test_weights_have_a_mean_of_one_and_balance_the_classes() -> None:
    labels = "a" * 6 + "b" * 3 + "c"
    weights = inverse_frequencies(labels)
    assert weights == pytest.approx({"a": 10 / 18, "b": 10 / 9, "c": 10 / 3})  # rows / (classes x count)
    assert sum(weights[label] for label in labels) == pytest.approx(10)
    roots = inverse_frequencies(labels, power=0.5)
    assert sum(roots[label] for label in labels) == pytest.approx(10)
    assert roots["c"] / roots["a"] == pytest.approx(6**0.5)


def test_a_row_that_comes_again_in_an_epoch_is_another_clip() -> None:
    for views, distinct in ((0, 20), (4, 4)):
        _, sampler = weighted({"a": 39, "b": 1}, 1, views=views)
        draws = [draw for row, draw in keys(sampler, 5) if row == 39]
        assert len(draws) == 20
        assert len(set(draws)) == distinct
    assert set(draws) == {sampler.key(39, epoch)[1] for epoch in range(4)}


def test_a_weighted_epoch_is_divided_and_resumed_as_any_other() -> None:
    counts = {"a": 40, "b": 9, "c": 1}
    _, alone = weighted(counts, 1, batch_size=12)
    shares = [keys(weighted(counts, 1, batch_size=4, rank=rank, world=3)[1], 4) for rank in range(3)]
    steps = [[key for one in shares for key in one[step * 4 : step * 4 + 4]] for step in range(4)]
    assert [keys(alone, 4)[step * 12 : step * 12 + 12] for step in range(4)] == steps
    assert keys(alone, 4, first_batch=2) == keys(alone, 4)[24:]
    assert keys(alone, 4) != keys(alone, 5)
    assert keys(alone, 4) != keys(weighted(counts, 1, batch_size=12, seed=4)[1], 4)
    with pytest.raises(ValueError, match="positive weight for each of 3 rows"):
        EpochSampler(3, seed=0, weights=[1.0, 0.0, 1.0])
