"""Which places answer for which spans, and the losses, calculated by hand."""

from __future__ import annotations

import math

import pytest
import torch

from uniformerv2.tasks.localisation.pyramid import places
from uniformerv2.tasks.localisation.recipe import PyramidConfig
from uniformerv2.tasks.localisation.targets import (
    PlaceTargets,
    SpanTargets,
    assign,
    distance_iou_loss,
    focal_loss,
)

CONFIG = PyramidConfig(levels=3, reach=4)


def assigned(*spans: tuple[float, float, int], windows: int = 20, length: int = 20) -> PlaceTargets:
    ends = torch.tensor([span[:2] for span in spans]).reshape(-1, 2)
    targets = SpanTargets(ends.float(), torch.tensor([span[2] for span in spans], dtype=torch.int64))
    return assign(targets, places(length, CONFIG), windows=windows, centre_radius=1.5, num_classes=3)


def answering(found: PlaceTargets, length: int = 20) -> dict[tuple[int, int], tuple[list[int], list[float]]]:
    """By stride and position: the classes and the distances."""
    all_places = places(length, CONFIG)
    return {
        (int(all_places.stride[number]), int(all_places.position[number])): (
            found.classes[number].nonzero().flatten().tolist(),
            found.distances[number].tolist(),
        )
        for number in found.positive.nonzero().flatten().tolist()
    }


def test_places_near_the_middle_answer_where_their_level_reaches_the_farther_end() -> None:
    # the middle is 6: windows 5, 6 and 7 are within 1.5, and their farther ends 3, 2 and 3 windows away
    assert answering(assigned((4.0, 8.0, 1))) == {
        (1, 5): ([1], [1.0, 3.0]),
        (1, 6): ([1], [2.0, 2.0]),
        (1, 7): ([1], [3.0, 1.0]),
    }
    # the middle is 9: of the second level 6, 8, 10 and 12 are within 3; those reach whose farther end is 4 to 8 windows
    # away. The third level, for 8 windows and more, has 4, 8 and 12 within 6
    assert answering(assigned((3.0, 15.0, 0))) == {
        (2, 8): ([0], [5.0, 7.0]),
        (2, 10): ([0], [7.0, 5.0]),
        (4, 4): ([0], [1.0, 11.0]),
        (4, 12): ([0], [9.0, 3.0]),
    }


def test_of_several_spans_the_shortest_counts_and_of_equal_ones_the_classes_of_both() -> None:
    nested = answering(assigned((4.0, 8.0, 1), (5.0, 7.0, 2)))
    assert nested[1, 6] == ([2], [1.0, 1.0])
    assert nested[1, 7] == ([1], [3.0, 1.0])  # the end of the short one
    assert answering(assigned((4.0, 8.0, 1), (4.0, 8.0, 2)))[1, 6] == ([1, 2], [2.0, 2.0])


def test_a_span_between_two_windows_has_the_nearest_one() -> None:
    assert answering(assigned((6.1, 6.4, 0))) == {(1, 6): ([0], [0.0, pytest.approx(0.4)])}


def test_no_place_answers_for_what_lies_outside_the_windows() -> None:
    assert not assigned().positive.any()
    assert not assigned((25.0, 25.2, 0), (-3.0, -2.8, 0)).positive.any()
    # in a batch whose longest film has 20 windows, nothing behind the end of one with 6
    assert not assigned((8.0, 12.0, 0), windows=6).positive.any()
    # what begins before a stretch of a film keeps its true beginning
    assert answering(assigned((-2.0, 3.0, 0)))[1, 1] == ([0], [3.0, 2.0])


def test_the_focal_loss_is_that_of_its_paper() -> None:
    logits, targets = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    score = 1 / (1 + math.exp(-2))
    expected = [0.25 * 0.5**2 * math.log(2), -0.25 * (1 - score) ** 2 * math.log(score)]
    expected.append(-0.75 * score**2 * math.log(1 - score))
    torch.testing.assert_close(focal_loss(logits, targets), torch.tensor(expected))


def test_the_border_loss_is_one_minus_iou_and_the_share_that_the_middles_are_apart() -> None:
    distances, targets = (
        torch.tensor([[1.0, 1.0], [1.0, 3.0], [0.0, 0.0]]),
        torch.tensor([[1.0, 1.0], [3.0, 1.0], [2.0, 2.0]]),
    )
    # [-1, 3] and [-3, 1]: 2 in common of 6, middles 2 apart
    expected = torch.tensor([0.0, 1 - 2 / 6 + (2 / 6) ** 2, 1.0])
    torch.testing.assert_close(distance_iou_loss(distances, targets), expected)
