"""The order of epochs, however many processes share them, and loading with processes that fail in every way."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from card import Card
from uniformerv2.data import loader as module
from uniformerv2.data import processes
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import Batch, Sample, VideoLoader
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augmentation import Augmentation

CLIP = Preprocessing(num_frames=2, size=(32, 32))


class Deadly(VideoDataset):
    """Files of some names do what files should not do."""

    def read(self, key: Any, *, out: torch.Tensor | None = None) -> Sample:
        path = self.annotations[key[0] if isinstance(key, tuple) else key].path
        if path.stem == "segfault":
            faulthandler.disable()  # or it prints where
            os.kill(os.getpid(), signal.SIGSEGV)
        if path.stem == "once" and not (marker := path.with_name("marker")).exists():
            marker.touch()
            os._exit(3)
        if path.stem == "bug":
            raise ZeroDivisionError("a bug")
        return super().read(key, out=out)


@pytest.fixture(scope="module")
def good(colours: Path) -> list[Annotation]:
    return [Annotation(path, path.parent.name) for path in sorted(colours.rglob("*.mp4"))]


def dataset(rows: list[Annotation], **options: Any) -> VideoDataset:
    return Deadly(rows, sorted({row.label for row in rows}), CLIP, **options)


def load(
    rows: list[Annotation], *, workers: int, batch_size: int = 4, training: bool = False, **options: Any
) -> VideoLoader:
    augmentation = Augmentation(num_ops=0) if training else None
    return make_loader(dataset(rows, augmentation=augmentation), batch_size=batch_size, workers=workers, **options)


def copy(video: Path, name: str, folder: Path) -> Annotation:
    return Annotation(Path(shutil.copy(video, folder / f"{name}.mp4")), "red")


def clips(batches: Iterator[Batch] | VideoLoader) -> torch.Tensor:
    return torch.cat([batch.clips.clone() for batch in batches])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_workers_give_what_one_process_gives(good: list[Annotation], workers: int, batch_size: int) -> None:
    alone, helped = (load(good, workers=number, batch_size=batch_size) for number in (0, workers))
    expected = list(alone)
    for _ in range(2):  # the second time with the same processes
        batches = list(helped)  # all of them are held, which takes more memory than is shared
        assert [batch.indices for batch in batches] == [batch.indices for batch in expected]
        assert [batch.labels.tolist() for batch in batches] == [batch.labels.tolist() for batch in expected]
        assert torch.equal(clips(iter(batches)), clips(iter(expected)))
    assert torch.equal(clips(helped), clips(iter(expected)))


def test_a_batch_keeps_its_clips_while_it_is_looked_at(good: list[Annotation]) -> None:
    first = None
    for batch in load(good, workers=2, batch_size=2):
        if first is None:
            first, before = batch.clips, batch.clips.clone()
    assert torch.equal(first, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_video_that_ends_its_process_is_left_out_and_named(
    good: list[Annotation], tmp_path: Path, workers: int
) -> None:
    deadly = copy(good[0].path, "segfault", tmp_path)
    rows = [deadly, *good[:5], deadly, deadly, *good[5:], deadly]
    batches = list(load(rows, workers=workers))
    assert [video.path for batch in batches for video in batch.unreadable] == [str(deadly.path)] * 4
    assert batches[0].unreadable[0].reason == f"{deadly.path}: reading it ended a process (SIGSEGV)"
    assert [video.row for batch in batches for video in batch.unreadable] == [0, 6, 7, 18]
    assert [path for batch in batches for path in batch.paths] == [str(row.path) for row in good]
    assert torch.equal(clips(iter([batch for batch in batches if len(batch)])), clips(load(good, workers=0)))


def test_a_process_that_was_ended_by_chance_costs_nothing(good: list[Annotation], tmp_path: Path) -> None:
    rows = [*good[:3], copy(good[0].path, "once", tmp_path), *good[3:]]
    batches = list(load(rows, workers=2))
    assert (tmp_path / "marker").exists()
    assert [batch.unreadable for batch in batches] == [[]] * 4
    assert [index for batch in batches for index in batch.indices] == list(range(len(rows)))


def test_processes_that_are_killed_between_two_epochs_are_replaced(good: list[Annotation]) -> None:
    before = set(multiprocessing.active_children())
    loader = load(good, workers=2)
    expected = clips(loader)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for process in workers:
        process.kill()
    assert torch.equal(clips(loader), expected)


def test_programming_errors_end_the_run_with_their_traceback(good: list[Annotation], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(load([*good, copy(good[0].path, "bug", tmp_path)], workers=2))


def test_an_epoch_that_is_left_early_leaves_no_process_behind(good: list[Annotation]) -> None:
    before = set(multiprocessing.active_children())
    loader = load(good, workers=2, batch_size=1)
    iterator = iter(loader)
    next(iterator)
    assert len(set(multiprocessing.active_children()) - before) == 2
    iterator.close()
    assert set(multiprocessing.active_children()) <= before
    assert len(clips(loader)) == len(good)


def test_fresh_processes_load_as_forks_do(good: list[Annotation], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    plain = VideoDataset(good[:4], ["blue", "green", "red"], CLIP)
    loader = make_loader(plain, batch_size=2, workers=1)
    assert torch.equal(clips(loader), clips(load(good[:4], workers=0)))


def test_too_little_shared_memory_is_told_before_it_kills(
    good: list[Annotation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(module.os, "statvfs", lambda path: Full)
    with pytest.raises(RecipeError, match=r"shared memory, but .* has 0\.00 GB left: enlarge it .*--shm-size"):
        list(load(good, workers=1))


def test_batches_are_uploaded_ahead_of_the_computing_by_another_thread(
    good: list[Annotation], card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "upload", card.upload)
    expected = list(load(good, workers=0))
    loader = load(good, workers=2, device=card.device)
    for _ in range(2):
        batches = list(loader)
        assert [batch.indices for batch in batches] == [batch.indices for batch in expected]
        assert torch.equal(clips(iter(batches)), clips(iter(expected)))
        assert list(map(id, card.uploaded)) == [id(tensor) for batch in batches for tensor in batch.tensors]
        assert card.threads.isdisjoint({threading.current_thread()})
        card.uploaded.clear()
    next(iter(loader))  # and no more
    assert not any(thread.is_alive() for thread in card.threads)


# failures in training


def broken(folder: Path, number: int) -> Annotation:
    path = folder / f"broken{number}.mp4"
    path.write_text("no video")
    return Annotation(path, "red")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_file_makes_a_batch_smaller(good: list[Annotation], tmp_path: Path, workers: int) -> None:
    bad = broken(tmp_path, 0)
    loader = load([*good, bad], workers=workers, training=True, batch_size=8)
    for epoch in range(3):  # a single file may fail, as often as it likes
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(len(batch) for batch in batches) == [7, 8]
        assert [video.path for batch in batches for video in batch.unreadable] == [str(bad.path)]
    ((row, video),) = loader.unreadable.items()
    assert (row, video.row, video.reason.startswith(str(bad.path))) == (15, 15, True)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_failures_than_allowed_end_the_run_and_name_the_way_out(
    good: list[Annotation], tmp_path: Path, workers: int
) -> None:
    rows = [*good, *(broken(tmp_path, number) for number in range(4))]
    options: dict[str, Any] = {"workers": workers, "training": True, "batch_size": len(rows)}
    with pytest.raises(VideoError) as caught:
        list(load(rows, **options))
    message = str(caught.value)
    assert "4 of 19 videos could not be read so far, more than the 1 % that max_failures allows" in message
    assert message.count("broken") == 3
    assert "`uniformerv2 data check`" in message
    assert "\n" not in message
    assert len(next(iter(load(rows, max_failures=0.25, **options)))) == 15


def test_evaluation_leaves_out_whatever_fails(tmp_path: Path) -> None:
    (batch,) = load([broken(tmp_path, number) for number in range(3)], workers=0)
    assert (len(batch), len(batch.unreadable)) == (0, 3)
