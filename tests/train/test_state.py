"""States appear whole or not at all, and nothing that they hold is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from helpers import Payload
from uniformerv2.distributed import Ranks
from uniformerv2.errors import CheckpointError
from uniformerv2.train.state import StateFolder, add_prefix, strip_prefix


def saved(path: Path) -> StateFolder:
    states = StateFolder(path / "state", Ranks())
    states.save("1", {"best": 0.1}, {"weight": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False])})
    states.finish()
    return states


def test_a_state_comes_back_and_its_absence_is_no_error(tmp_path: Path) -> None:
    assert StateFolder(tmp_path, Ranks()).facts() is None
    saved(tmp_path)
    states = StateFolder(tmp_path / "state", Ranks())
    assert states.facts() == {"best": 0.1}
    assert states.shapes() == {"weight": (2, 3), "mask": (2,)}
    tensors = {"weight": torch.empty(2, 3), "mask": torch.empty(2, dtype=torch.bool)}
    states.load(tensors)
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["mask"].tolist() == [True, False]


def test_what_is_saved_is_what_was_there_when_saving_began(tmp_path: Path) -> None:
    states, weight = StateFolder(tmp_path, Ranks()), torch.zeros(1_000_000)
    states.save("1", {}, {"weight": weight})
    weight.fill_(1)
    states.finish()
    found = torch.empty(1_000_000)
    states.load({"weight": found})
    assert not found.any()


def test_only_the_newest_stays_and_half_a_state_counts_for_nothing(tmp_path: Path) -> None:
    states = saved(tmp_path)
    (states.path / "3.partial").mkdir()
    assert states.newest == states.path / "1"
    states.save("2", {"best": 0.2}, {"weight": torch.ones(1)})
    states.finish()
    assert [one.name for one in states.path.iterdir()] == ["2"]
    assert states.facts() == {"best": 0.2}


def test_a_state_is_not_written_twice(tmp_path: Path) -> None:
    states = saved(tmp_path)
    states.save("1", {"best": 9}, {"weight": torch.zeros(1)})
    states.finish()
    assert states.facts() == {"best": 0.1}


@pytest.mark.parametrize("kind", ["code", "another object", "cut short", "text", "nothing"])
def test_what_is_no_state_is_refused_and_runs_no_code(tmp_path: Path, kind: str) -> None:
    states, target = saved(tmp_path), tmp_path / "owned"
    metadata = states.path / "1" / ".metadata"
    content = {
        "code": pickle.dumps(Payload(target)),
        "another object": pickle.dumps({"epoch": 1}),
        "cut short": metadata.read_bytes()[:100],
        "text": b"this is no state",
        "nothing": b"",
    }
    metadata.write_bytes(content[kind])
    with pytest.raises(CheckpointError, match=r"state/1: damaged, or of another .* \(.*--overwrite"):
        states.shapes()
    with pytest.raises(CheckpointError, match=r"state/1: damaged"):
        states.load({"weight": torch.empty(2, 3)})
    assert not target.exists()


def test_tensors_that_it_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bias"):
        saved(tmp_path).load({"bias": torch.empty(3)})
    with pytest.raises(CheckpointError, match="weight"):
        saved(tmp_path).load({"weight": torch.empty(7)})


def test_names_are_kept_under_a_name() -> None:
    both = add_prefix("model", {"a/b": 1}) | add_prefix("optimizer", {"c": 2})
    assert strip_prefix("model", both) == {"a/b": 1}
    assert strip_prefix("optimizer", both) == {"c": 2}
