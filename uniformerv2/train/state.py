"""What resuming needs: tensors, each process writing its share while training goes on, and facts.

The format is that of torch.distributed.checkpoint, which reads for any number of processes what any number has written.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from uniformerv2.distributed import Ranks, is_lost_connection
from uniformerv2.errors import CheckpointError
from uniformerv2.text import parse_json

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is meant

T = TypeVar("T")

FACTS = "facts.json"
PARTIAL = ".partial"


class StateFolder:
    """The states of a run, a folder each. The newest is the one that counts.

    A state is written beside the training and appears when all of it is on disk, by being renamed; then the former ones
    go. All processes of a group make one, and call `save` and `load`, together.

    Args:
        path: of the folder, which all processes see.
        ranks: the processes.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        # a group of its own: what is said while writing must not mix with what is said while training
        self._group = distributed.new_group(backend="gloo") if ranks.world > 1 else None
        self._publisher = ThreadPoolExecutor(1)
        self._writing: Future[Any] | None = None

    def save(self, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Begin to write a state, if there is none of that name. The tensors may change as soon as this returns.

        Args:
            name: of its folder; names sort as the states follow each other.
            facts: what JSON can hold.
            tensors: by name; those that are divided among processes, or only one process has, are written once each.

        Raises:
            CheckpointError: this state, or the one before, could not be written.
        """
        self.finish()
        final, partial = self.path / name, self.path / (name + PARTIAL)
        # a state is never removed to be written again: a kill in between would lose it
        if self.ranks.gather(final.is_dir())[0]:
            return
        with self._failing():
            if self.ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            self.ranks.wait()
            written: Any = checkpoint.async_save(dict(tensors), checkpoint_id=partial, process_group=self._group)
        # the first process has all of it when the others have written their shares
        self._writing = self._publisher.submit(self._publish, written, partial, final) if self.ranks.first else written

    def _publish(self, written: Future[Any], partial: Path, final: Path) -> None:
        written.result()
        partial.rename(final)
        for other in self.path.iterdir():
            if other != final:
                shutil.rmtree(other)

    def finish(self) -> None:
        """Wait until the last state is written. Raises CheckpointError."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with self._failing():
                writing.result()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Around writing: what goes wrong there is a CheckpointError in a line."""
        try:
            yield
        except (CheckpointException, OSError, RuntimeError) as error:
            for partial in self.path.glob(f"*{PARTIAL}"):
                shutil.rmtree(partial, ignore_errors=True)
            cause = _cause(error)
            raise (cause if is_lost_connection(cause) else unwritable(self.path, cause)) from error

    @property
    def newest(self) -> Path | None:
        """The state that counts; None where there is none yet."""
        return max((state for state in self.path.glob("*") if state.suffix != PARTIAL), default=None)

    def facts(self) -> dict[str, Any] | None:
        """Of the newest state; None where there is none yet. Raises CheckpointError."""
        if self.newest is None:
            return None
        with self.reading():
            return parse_json((self.newest / FACTS).read_text(encoding="utf-8"))

    def shapes(self) -> dict[str, torch.Size]:
        """Of all tensors in the newest state, by name. Raises CheckpointError."""
        assert self.newest is not None
        with self.reading():
            entries = _Reader(self.newest).read_metadata().state_dict_metadata
            return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors from those of the same names in the newest state.

        Raises:
            CheckpointError: it cannot be read, or has no such tensors.
        """
        assert self.newest is not None
        with self.reading():
            checkpoint.load(tensors, storage_reader=_Reader(self.newest), process_group=self._group)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the use of the newest state: what goes wrong there is a CheckpointError in a line."""
        try:
            yield
        except CheckpointError:
            raise
        except (Exception, CheckpointException) as error:  # what is no state can make it fail in any way
            reason = (str(_cause(error)).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self.newest}: damaged, or of another version or another model ({reason}); start again with "
                "--overwrite"
            ) from error


def add_prefix(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """The values under "prefix/name"."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def strip_prefix(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Those of the values that are under a prefix, by their names without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def unwritable(path: Path, error: BaseException) -> CheckpointError:
    """The error for a full disk and its like."""
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free / 2**20
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return CheckpointError(
        f"{path}: could not be written ({reason}; {free:.0f} MiB are free there); what was saved before is intact: "
        "make room and continue with --resume"
    )


def _cause(error: BaseException) -> BaseException:
    """What went wrong in the first of the processes that failed."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    return failures[min(failures)][0] if failures else error


class _Reader(checkpoint.FileSystemReader):
    """Reads the metadata, which are a pickle, without running anything that is in it."""

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError("no metadata")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    """Knows what metadata are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _MADE_OF.get(module, ()) and not (module == "torch" and _is_dtype(name)):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a training state")
        return super().find_class(module, name)


_MADE_OF = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)
