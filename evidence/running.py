"""Cells are run: each by one thread, shared by as many processes as there are, none of them twice."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import Timeout

from evidence.baselines import SpaceTimeTransformer, count_multiply_adds
from evidence.cells import Cell, Result, Results, recipe_of, views
from evidence.data import DataSet, Sources, split_into_folds
from evidence.probes import fit_probe
from evidence.starts import pretrained, start_model, trained_on_merged_sets
from uniformerv2 import (
    Annotation,
    Evaluation,
    Predictor,
    Recipe,
    UniFormerV2,
    UniFormerV2Error,
    VideoError,
    load_model,
    save_model,
    train_classifier,
)
from uniformerv2.benchmark.measuring import machine
from uniformerv2.data.annotations import Unreadable
from uniformerv2.progress import say
from uniformerv2.tasks.run import build_run, split_data
from uniformerv2.train.engine import Trainer
from uniformerv2.train.run_folder import RunFolder


def run_cell(
    cell: Cell, rows: Sequence[Annotation], work: Path, image: str | Path | None = None, device: str = "cpu"
) -> Result:
    """Train and test one cell.

    Args:
        cell: what is run.
        rows: the videos of its fold.
        work: an empty folder for the run.
        image: as of `start_model`.
        device: that computes.

    Raises:
        VideoError: a video cannot be read; a table must not compare different videos.
    """
    begun = time.perf_counter()
    labels = tuple(sorted({row.label for row in rows}))
    start = start_model(cell, labels, image)
    if cell.probe is not None:
        trained = Trained(*fit_probe(start, rows, cell, work, device))
    elif cell.architecture is None:
        trained = _train(start, rows, cell, work, device)
    else:
        live = SpaceTimeTransformer(start, cell.architecture)
        trained = train_live(live, rows, recipe_of(cell, work), work, device)
    model, evaluation = trained.model, trained.evaluation
    if unread := [*trained.skipped, *evaluation.skipped]:
        raise VideoError(f"{cell.data}: {len(unread)} videos cannot be read, such as {unread[0].path}")
    tested = [row for row in rows if row.split == "test"]
    order = [evaluation.labels.index(label) for label in labels]
    size, num_frames = cell.recipe["size"], cell.recipe["num_frames"]
    of_a_view = count_multiply_adds(cell.architecture, model.config, num_frames, (size, size))
    return Result(
        cell,
        labels,
        right=tuple(labels.index(row.label) for row in tested),
        answers=tuple(map(int, evaluation.scores[:, order].argmax(1))),
        shuffled=tuple(order.index(number) for number in shuffled_answers(model, cell, tested, device)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=len(views(cell)) * of_a_view,
        seconds=round(time.perf_counter() - begun, 1),
        machine=_machine(device),
    )


class Trained(NamedTuple):
    """What came of a training."""

    model: UniFormerV2  # after the last epoch, in eval mode
    evaluation: Evaluation
    skipped: Sequence[Unreadable]  # training videos


def _machine(device: str) -> str:
    card = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else ""
    return f"{card}, {machine()}" if card else machine()


def _train(start: UniFormerV2, rows: Sequence[Annotation], cell: Cell, work: Path, device: str) -> Trained:
    save_model(start, work / "start.safetensors")
    recipe = recipe_of(cell, work / "start.safetensors")
    trained = train_classifier(rows, recipe, work / "run", device=device, workers=0, save_every_seconds=1e9)
    assert trained.evaluation is not None
    return Trained(load_model(trained.last), trained.evaluation, trained.skipped)


def train_live(
    model: UniFormerV2, rows: Sequence[Annotation], recipe: Recipe, work: Path, device: str = "cpu"
) -> Trained:
    """The same with a model that no checkpoint can hold: it is trained as it is, and not saved."""
    videos = split_data(rows, recipe, task="classification")
    parts = build_run(recipe, videos, task="classification", device=torch.device(device), workers=0, model=model)
    run = RunFolder(work / "run")
    run.start({}, resume=False)
    trainer = Trainer(
        parts.model, parts.task, parts.loader, parts.recipe.optimization,
        run=run, save=lambda model, path: None, save_every_seconds=1e9,
    )  # fmt: skip
    trainer.fit()
    with trainer.step.evaluated() as trained:
        evaluation = parts.task.measure(trained)
    assert isinstance(evaluation, Evaluation)
    return Trained(model, evaluation, tuple(parts.task.skipped.values()))


@torch.inference_mode()
def shuffled_answers(model: UniFormerV2, cell: Cell, rows: Sequence[Annotation], device: str = "cpu") -> list[int]:
    """The class that a model gives each video when the frames of its clips come in a random order."""
    predictor = Predictor(model, views=views(cell), device=device)
    answers = []
    for number, row in enumerate(rows):
        clips = predictor.clips(row).to(predictor.device)  # (views, 3, frames, height, width)
        order = np.random.default_rng((cell.seed, number)).permutation(clips.shape[2])
        answers.append(int(predictor.model(clips[:, :, order]).softmax(-1).mean(0).argmax()))
    return answers


def work_through(
    cells: Sequence[Cell], data: dict[str, DataSet], sources: Sources, folder: Path, device: str = "cpu"
) -> int:
    """Run every cell that has no result and that no other process runs; returns how many failed, each with a line."""
    torch.set_num_threads(1)
    results, failed = Results(folder), 0
    folds: dict[tuple[str, int], list[list[Annotation]]] = {}
    for number, cell in enumerate(cells, start=1):
        work = sources.cache / "runs" / cell.digest
        try:
            with results.lock(cell).acquire(timeout=0):
                if results.path(cell).is_file():
                    continue
                if (key := (cell.data, cell.recipe["size"])) not in folds:
                    folds[key] = split_into_folds(data[cell.data], sources.small_rows(data[cell.data], key[1]))
                shutil.rmtree(work, ignore_errors=True)  # of a process that was killed, or of a cell that failed
                work.mkdir(parents=True)
                image = _trained_first(cell, data, sources, device)
                result = run_cell(cell, folds[key][cell.fold], work, image, device)
                results.add(result)
                shutil.rmtree(work, ignore_errors=True)
                accuracy = f"{100 * result.correct.mean():.1f} % in {result.seconds:.0f} s"
                say(f"{number} of {len(cells)}: {cell.data}, seed {cell.seed}, {cell.digest}: {accuracy}")
        except Timeout:
            continue  # another process is at it
        except UniFormerV2Error as error:
            failed += 1
            say(f"{cell.digest} ({cell.data}, seed {cell.seed}) failed: {error}")
    return failed


def _trained_first(cell: Cell, data: Mapping[str, DataSet], sources: Sources, device: str) -> str | Path | None:
    if cell.start == "vit_tiny":
        return sources.vit_tiny
    if cell.pretraining is None:
        return None
    if cell.start == "merged":
        return trained_on_merged_sets(cell, data, sources, device)
    return pretrained(cell.start, cell.pretraining, sources.cache)


def run_all(
    cells: Sequence[Cell], data: dict[str, DataSet], sources: Sources, folder: Path, *, jobs: int, device: str = "cpu"
) -> list[str]:
    """Run the cells in so many processes of one thread each. Returns what went wrong, a line each."""
    folder.mkdir(parents=True, exist_ok=True)
    if jobs == 1:  # this process
        failed = work_through(cells, data, sources, folder, device)
        return [f"{failed} cells failed, see above"] * (failed > 0)
    spawn = multiprocessing.get_context("spawn")
    arguments = (cells, data, replace(sources, given=dict(sources.given)), folder, device)
    workers = [spawn.Process(target=_work, args=arguments) for _ in range(jobs)]  # no daemons: they draw in processes
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
    ends = [worker.exitcode or 0 for worker in workers]
    killed = sum(end < 0 for end in ends)
    told = [f"{killed} of {jobs} processes were killed; run again, and their cells are run too"] if killed else []
    return told + ["some cells failed, see above"] * any(end > 0 for end in ends)


def _work(cells: Sequence[Cell], data: dict[str, DataSet], sources: Sources, folder: Path, device: str) -> None:
    try:
        failed = work_through(cells, data, sources, folder, device)
    except KeyboardInterrupt:  # the first process says so
        raise SystemExit(130) from None
    if failed:
        raise SystemExit(1)
