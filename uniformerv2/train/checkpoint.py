"""The folder of a run: what is written, when it may be touched, and what resuming needs."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from uniformerv2.atomic import whole_file, write_text
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.train.lock import locked
from uniformerv2.train.recipe import differences


class RunFolder:
    """Paths and rules of one run's folder. Touches nothing until `start`.

    recipe.json         what ran
    train.csv, held_out.csv  manifests of the split
    metrics.jsonl       one JSON object a line: a record of each step and each epoch
    evaluation.json     of the last model, video by video; written at the end
    last.safetensors    the model after the last finished epoch
    best.safetensors    the model after the epoch with the best held-out metric
    state.pt            what resuming needs: weights, optimizer, how far the run has come; written last, so it is
                        always consistent

    While a process works on the run, it holds the lock of .lock.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.train = self.path / "train.csv"
        self.held_out = self.path / "held_out.csv"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"
        self.state = self.path / "state.pt"

    def files(self) -> list[Path]:
        """Everything that a run writes."""
        return [self.recipe, self.train, self.held_out, self.metrics, self.evaluation, self.last, self.best, self.state]

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether this folder may be used so. Raises RecipeError and touches nothing."""
        if resume and overwrite:
            raise RecipeError("resume and overwrite contradict each other: choose one")
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path}: not a folder; a run needs a folder of its own")
        if resume:
            if not self.recipe.is_file():
                raise RecipeError(f"{self.path}: no run to resume here (recipe.json is missing)")
        elif self.path.is_dir() and set(self.path.iterdir()) - {self.path / ".lock", *self._partial_files()}:
            if not overwrite:
                raise RecipeError(
                    f"{self.path}: not empty; continue its run with --resume, replace it with --overwrite, "
                    "or choose another folder"
                )
            if not self.recipe.is_file():
                raise RecipeError(f"{self.path}: holds other files and no run; only a run is overwritten")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep every other process out of it until the end.

        Raises:
            RecipeError: a live process works in it, or it cannot be written to.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = ExitStack()
            lock.enter_context(locked(self.path / ".lock"))
        with lock:
            for file in self._partial_files():
                file.unlink(missing_ok=True)
            yield

    def _partial_files(self) -> list[Path]:
        """What a process left that was killed while it wrote."""
        return [partial for file in self.files() for partial in self.path.glob(f".{file.name}.*.partial")]

    def start(self, texts: dict[Path, str], *, resume: bool) -> None:
        """Begin to write: make the folder, remove the files of a former run, write these texts.

        Args:
            texts: what the run is given, file by file.
            resume: compare instead, and write only what is missing because a kill came at the beginning.

        Raises:
            RecipeError: the run that is to be resumed was given something else.
        """
        if resume:
            texts = {file: text for file, text in texts.items() if not self._has_same(file, text)}
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._remove_run()
            for file, text in texts.items():
                write_text(file, text)

    def _remove_run(self) -> None:
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        for file in reversed(self.files()):  # recipe.json last: what a kill leaves is still known as a run
            file.unlink(missing_ok=True)

    def _has_same(self, file: Path, text: str) -> bool:
        """Whether a file of the run says this; False if it is missing. Raises RecipeError if it says something else."""
        if not file.is_file():
            return False
        before = file.read_text(encoding="utf-8")
        if before == text:
            return True
        if file == self.recipe:
            changed = "; ".join(differences(_parse(before, file), json.loads(text)))
            raise RecipeError(f"{self.path}: resume with the options that it was started with ({changed})")
        raise RecipeError(f"{self.path}: the videos or their split are not those of {file.name}; start another run")

    def save_state(self, state: dict[str, Any]) -> None:
        """Write state.pt, whole or not at all. Raises CheckpointError."""
        with self.saving(self.state), whole_file(self.state) as partial:
            torch.save(state, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # on disk before it takes the place of the former, even if power fails

    @contextmanager
    def saving(self, file: Path) -> Iterator[None]:
        """Around the writing of a file of the run: what goes wrong there is a CheckpointError in a line."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # how torch and safetensors tell of a full disk
            free = shutil.disk_usage(self.path).free / 2**20
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise CheckpointError(
                f"{file}: could not be written ({reason}; {free:.0f} MiB are free there); what was saved before is "
                "intact: make room and continue with --resume"
            ) from error

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` wrote; None where nothing was saved yet. Raises CheckpointError."""
        if not self.state.is_file():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about files that it did not write
                return torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:  # what is no state can make the unpickler fail in any way
            raise CheckpointError(
                f"{self.state}: not a readable training state; start again with --overwrite"
            ) from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be written to ({error.strerror})") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{file}: not the recipe of a run ({error}); start again with --overwrite") from error
