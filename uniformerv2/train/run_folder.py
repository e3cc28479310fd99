"""The folder of a run: what is written, when it may be touched, and what resuming needs."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.manifest import ROOT_FILE
from uniformerv2.errors import RecipeError
from uniformerv2.text import parse_json
from uniformerv2.train.choices import SPAN_TASK
from uniformerv2.train.recipe import USUAL_TASK, Recipe, differences, disagreements
from uniformerv2.train.state import PARTIAL, unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# of a recipe, when its run is resumed: the steps stay the same, and so does the digest of a localiser's video model
MAY_CHANGE = {"accumulate", "video_checkpoint"}
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system, which must not stop a run


class RunFolder:
    """Paths and rules of one run's folder. Touches nothing until `start`.

    recipe.json         what ran
    train.csv, held_out.csv  manifests of the split; no held_out.csv where nothing is held out
    data.json           the folder that their paths are relative to
    attention.json      the attention kernels that were measured to be fast, in bfloat16 on a CPU
    motion_first.json   the accuracy on held-out drawn motions, where the run began with them
    metrics.jsonl       one JSON object a line: a record of each step and each epoch
    evaluation.json     of the last model, video by video; written at the end, if something is held out
    last.safetensors    the model after the last finished epoch
    best.safetensors    the model after the epoch with the best held-out metric
    state/              what resuming needs: weights, optimizer, how far the run has come; begun last, so it is
                        always consistent; see `StateFolder`
    motions/            the training on drawn motions, until it has ended

    While a process works on the run, it holds the lock of .lock.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.train = self.path / "train.csv"
        self.held_out = self.path / "held_out.csv"
        self.root_note = self.path / ROOT_FILE
        self.attention = self.path / "attention.json"
        self.motion_first = self.path / "motion_first.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"
        self.states = self.path / "state"
        self.motions = self.path / "motions"
        # all that a run writes, beside what is in folders
        self.files = [self.recipe, self.train, self.held_out, self.root_note, self.attention, self.metrics]
        self.files += [self.motion_first, self.evaluation, self.last, self.best]

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

    def read_recipe(self) -> Recipe:
        """The recipe that the run was started with. Raises RecipeError, also for the run of a localiser."""
        if self.read_task() == SPAN_TASK:  # whose recipe is another
            raise RecipeError(
                f"{self.path}: the run of a localiser, which goes on by --task {SPAN_TASK}, in Python train_localiser"
            )
        try:
            return Recipe.from_fields(_parse(self.recipe.read_text(encoding="utf-8"), self.recipe))
        except (TypeError, ValueError, AttributeError, OSError, RecipeError) as error:
            raise RecipeError(f"{self.recipe}: not the recipe of a run ({error}); start another run") from error

    def read_task(self) -> str:
        """The name of the task that the run was started for. Raises RecipeError."""
        try:
            return str(_parse(self.recipe.read_text(encoding="utf-8"), self.recipe).get("task", USUAL_TASK))
        except (OSError, ValueError, AttributeError) as error:
            raise RecipeError(f"{self.recipe}: not the recipe of a run ({error}); start another run") from error

    def how_to_go_on(self) -> str:
        """A line for whoever has interrupted the run."""
        if not self.recipe.is_file():
            return "interrupted before the run began"
        return (
            f'interrupted; go on with resume=True and output="{self.path}", on the command line with '
            f"uniformerv2 train --resume --output {shlex.quote(str(self.path))}"
        )

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
            for partial in self.states.glob(f"*{PARTIAL}"):
                shutil.rmtree(partial)
            yield

    def _partial_files(self) -> list[Path]:
        """What a process left that was killed while it wrote."""
        return [partial for file in self.files for partial in self.path.glob(f".{file.name}.*.partial")]

    def start(self, texts: dict[Path, str], *, resume: bool) -> None:
        """Begin to write: make the folder, remove the files of a former run, write these texts.

        Args:
            texts: what the run is given, file by file.
            resume: compare instead, and write only what is missing because a kill came at the beginning, or may change.

        Raises:
            RecipeError: the run that is to be resumed was given something else.
        """
        if resume:
            texts = {file: text for file, text in texts.items() if not self._has_same(file, text)}
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                for folder in (self.states, self.motions, self.path / "tensorboard"):
                    shutil.rmtree(folder, ignore_errors=True)
                for file in reversed(self.files):  # recipe.json last: what a kill leaves is still known as a run
                    file.unlink(missing_ok=True)
            for file, text in texts.items():
                write_text(file, text)

    def _has_same(self, file: Path, text: str) -> bool:
        """Whether a file of the run has this text; False if it is missing, or has another that may change.

        Raises RecipeError if it has another that may not.
        """
        if not file.is_file():
            return False
        before = file.read_text(encoding="utf-8")
        if before == text:
            return True
        if file == self.recipe:
            recipes = _parse(before, file), parse_json(text)
            for recipe in recipes:  # what is newer than some runs
                recipe.setdefault("task", USUAL_TASK)
                recipe.get("augmentation", {}).setdefault("flip_labels", "none")
                recipe.get("augmentation", {}).setdefault("reverse_labels", "none")
                recipe.get("model", {}).setdefault("motion_first", False)
                recipe.get("localiser", {}).setdefault("video_lr", 0.0)
                recipe.get("optimization", {}).setdefault("loss", "cross-entropy")
                recipe.get("optimization", {}).setdefault("background", 0.0)
            if disagreements(recipes).keys() <= MAY_CHANGE:
                return False
            changed = "; ".join(differences(*recipes))
            raise RecipeError(
                f"{self.path}: resume with the options that it was started with ({changed}), or start another run, "
                f"which goes on from the model of this one: --checkpoint {self.last}"
            )
        changed = "; ".join(_changed_rows(before, text))
        raise RecipeError(
            f"{self.path}: the videos or their split are not those of {file.name} ({changed}); start another run, "
            f"which can go on from the model of this one: --checkpoint {self.last}"
        )

    @contextmanager
    def saving(self, file: Path) -> Iterator[None]:
        """Around the writing of a file of the run: what goes wrong there is a CheckpointError in a line."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # how torch and safetensors tell of a full disk
            raise unwritable(file, error) from error


def new_run_folder(data: str | Path | Sequence[Annotation]) -> Path:
    """In the current folder, named after the data; not there yet."""
    name = f"{Path(data).resolve().stem}-run" if isinstance(data, str | Path) else "run"
    names = (name if number == 1 else f"{name}{number}" for number in count(1))
    return next(folder for folder in map(Path, names) if not folder.exists())


def _changed_rows(before: str, after: str) -> list[str]:
    """What differs between two manifests, in words, with the first rows."""
    old, new = (list(dict.fromkeys(text.splitlines()[1:])) for text in (before, after))
    old_set, new_set = set(old), set(new)
    gone, added = [row for row in old if row not in new_set], [row for row in new if row not in old_set]
    named = ((gone, "no longer there"), (added, "new"))
    found = [f"{len(rows)} row(s) {what}, such as {' and '.join(rows[:3])}" for rows, what in named if rows]
    return found or ["the same rows in another order"]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be written to ({error.strerror}); choose another --output") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return parse_json(text)
    except ValueError as error:
        raise RecipeError(f"{file}: not the recipe of a run ({error}); start again with --overwrite") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made for that and removed at the end.

    The system gives up the lock of a process that dies, in whatever way, so the file that it leaves behind means
    nothing. Processes that are forked from this one do not hold it.

    Raises:
        RecipeError: another process holds it, or this one does already.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = "another process"
        with suppress(OSError):
            holder = path.read_text(errors="replace") or holder
        raise RecipeError(
            f"{path.parent}: in use by {holder}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: a process that opened it meanwhile finds that it is gone
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of a file, as far as the system and the file system tell; never on Windows.

    Reading is enough: a run may be another user's.
    """
    if fcntl is None or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what `FileLock` is made of; given up at once
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return False
