"""Drawn numbers are the same everywhere, and a summary shows a change of any entry."""

from __future__ import annotations

import hashlib
import math

import torch

from reference.drawn import FEW, difference, draw, draw_pixels, draw_state, draw_words, splitmix64, summarise


def test_words_are_those_of_the_published_splitmix64() -> None:
    assert splitmix64(1234567, 3).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_drawn_numbers_are_pinned() -> None:
    assert draw_words("scene input", 2).tolist() == [10931444975570192179, 2493725365078391312]
    assert draw("scene input", (2, 2)).tolist() == [
        [0.1851959228515625, -0.7296295166015625],
        [0.7103729248046875, 0.8453521728515625],
    ]
    assert draw("scene input", (2,), scale=0.25, centre=1.0).tolist() == [1.0462989807128906, 0.8175926208496094]
    assert draw_pixels("landscape frames", (4,)).tolist() == [240, 93, 187, 95]


def test_a_drawn_state_is_pinned() -> None:
    shapes = {
        "blocks.0.norm1.weight": (48,),
        "blocks.0.norm1.bias": (48,),
        "blocks.0.mlp.fc1.weight": (192, 48),
        "stem.weight": (48, 3, 3, 8, 8),
        "bn.running_mean": (48,),
        "bn.running_var": (48,),
        "bn.num_batches_tracked": (),
    }
    state = draw_state(shapes, seed="scene")
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
    assert digest == "15a14d7a218fa9f060d53c9f80770c06ef1fc383b2110804e9a409c6b186cfd3"
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes
    assert 0.75 < state["blocks.0.norm1.weight"].min() < 0.8
    assert 0.5 < state["bn.running_var"].min() < 0.6
    inputs = draw("inputs", (100, 48), scale=2.0)
    assert 0.5 < (inputs @ state["blocks.0.mlp.fc1.weight"].T).std() / inputs.std() < 2


def test_a_summary_shows_a_change_of_any_entry() -> None:
    for count in (FEW, 6000):
        tensor = draw("tensor", (count,))
        recorded = summarise({"a": tensor})["a"]
        assert difference(recorded, recorded) == 0
        for place in (0, 77, count - 1):
            changed = tensor.clone()
            changed[place] += 0.0101
            assert 0.01 / tensor.norm() <= difference(summarise({"a": changed})["a"], recorded) < 0.02
        assert difference(summarise({"a": tensor.flip(0)})["a"], recorded) > 0.1
        assert difference(summarise({"a": tensor * math.nan})["a"], recorded) == math.inf
        assert difference(summarise({"a": tensor[:-1]})["a"], recorded) > 1e-3
    assert summarise({"train.grad.a": torch.ones(2)})["train.grad.a"]["norm"] == 2**0.5
