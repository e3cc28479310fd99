"""The order of training epochs, however many processes share them."""

from __future__ import annotations

from collections import Counter

import pytest

from uniformerv2.data.loader import EpochSampler


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
