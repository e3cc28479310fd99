"""Numbered work items that processes share, with results that outlive the processes.

The result of a work item must not depend on who computes it or on what was computed before: then neither the number
of processes nor an interruption changes a bit of the whole.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from uniformerv2.data.journal import Journal
from uniformerv2.data.tables import PARQUET_SUFFIXES, check_target
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import AnnotationError, RecipeError, UniFormerV2Error

WorkItem = tuple[int, ...]  # its number
Result = dict[str, Any]  # what JSON can hold


class SharedWork:
    """The results of work items: of this process, of the others, and of an interrupted run.

    All processes of a group create one, and call `collect`, together.

    Args:
        journal: file that every result is added to at once; process i > 0 has its own, `journal`.i. None keeps results
            in memory only.
        identity: everything that decides the results, by name. A journal with another identity is refused.
        resume: continue from the journals. Without it, there must be none with results.

    Attributes:
        done: work items with a result, in any process.

    Raises:
        RecipeError: a journal must not be used; the message says why.
        AnnotationError: a journal cannot be written.
    """

    def __init__(self, journal: str | Path | None, identity: Mapping[str, str], *, resume: bool) -> None:
        self._ranks = current_ranks()
        self._results: dict[WorkItem, Result] = {}
        self._journal: Journal | None = None
        self._begun = False

        def known() -> list[WorkItem]:
            if journal is not None:
                self._open(Path(journal), dict(identity), resume)
            return list(self._results)

        try:
            of_ranks = self._ranks.on_all_ranks(known)
        except UniFormerV2Error:
            self._close()
            raise
        self.done = {item for items in of_ranks for item in items}
        known_before = {item for items in of_ranks[: self._ranks.rank] for item in items}
        # several processes may have read the same files: the first keeps a result
        self._results = {item: result for item, result in self._results.items() if item not in known_before}
        if self._journal is not None and not self._begun:
            self._journal.add({"identity": dict(identity)})

    def _open(self, path: Path, identity: dict[str, str], resume: bool) -> None:
        files = _journals(path)
        self._results = {item: result for file in files for item, result in _read(file, identity, resume)}
        own = path if self._ranks.first else path.with_name(f"{path.name}.{self._ranks.rank}")
        if not resume:
            for file in [own, *(file for file in files if self._ranks.first and _rank_of(file) >= self._ranks.world)]:
                file.unlink(missing_ok=True)
        self._journal = Journal(own)
        self._begun = any("identity" in line for line in self._journal.records())

    def share(self, count: int) -> list[int]:
        """The numbers below `count` that are for this process: every `world`-th."""
        return list(range(self._ranks.rank, count, self._ranks.world))

    def add(self, item: WorkItem, result: Result) -> None:
        """Keep a result, in the journal first."""
        if self._journal is not None:
            self._journal.add({"item": item, **result})
        self._results[item] = result
        self.done.add(item)

    def collect(self) -> dict[WorkItem, Result]:
        """The results of all processes, in the order of the work items, in every process."""
        self._close()
        results = {item: result for some in self._ranks.gather(self._results) for item, result in some.items()}
        return dict(sorted(results.items()))

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> SharedWork:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()


@contextmanager
def journal_of(output: Path, *others: Path | None) -> Iterator[Path]:
    """The journal of a run that writes `output`; removed at the end, which all processes reach together.

    Args:
        output: file that is written at the end.
        others: further such files.

    Raises:
        RecipeError: two of the files are the same.
        AnnotationError: there is no folder for a file, or it is Parquet and there is no pyarrow.
    """
    targets = [output, *(file for file in others if file is not None)]
    for target in targets:
        check_target(target)
        if target.suffix.lower() in PARQUET_SUFFIXES and find_spec("pyarrow") is None:
            raise AnnotationError(
                f'{target}: Parquet files need pyarrow: pip install "uniformerv2[data]"; or choose another suffix'
            )
    if len({target.absolute() for target in targets}) < len(targets):
        raise RecipeError(f"{output}: one file cannot hold two things; give another name to one of them")
    journal = output.with_name(output.name + ".journal")
    yield journal
    current_ranks().wait()  # no journal goes before everything is written
    for file in _journals(journal):
        file.unlink(missing_ok=True)


def _journals(path: Path) -> list[Path]:
    """A journal and those of the other processes."""
    name = re.compile(re.escape(path.name) + r"(\.\d+)?")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name)) if path.parent.is_dir() else []


def _rank_of(journal: Path) -> int:
    number = journal.suffix[1:]
    return int(number) if number.isdigit() else 0


def _read(file: Path, identity: dict[str, str], resume: bool) -> Iterator[tuple[WorkItem, Result]]:
    with Journal(file) as journal:
        begun = False
        for line in journal.records():
            if "identity" in line:
                begun = True
                if resume:
                    _check_same(file, line["identity"], identity)
            elif begun and "item" in line:
                if not resume:
                    raise RecipeError(
                        f"{file}: holds the results of an interrupted run; continue it with --resume, or delete the "
                        "file"
                    )
                yield tuple(line.pop("item")), line


def _check_same(file: Path, before: object, now: dict[str, str]) -> None:
    if before == now:
        return
    known = before if isinstance(before, dict) else {}
    changed = [
        f"{name} (then {known.get(name)}, now {value})" for name, value in now.items() if known.get(name) != value
    ]
    raise RecipeError(
        f"{file}: cannot be resumed, it was begun with other {', '.join(changed) or 'options'}; repeat those of then, "
        "or delete the file"
    )


def packed(values: Tensor) -> str:
    """Float32 numbers as a text, which JSON keeps bit by bit in 5.3 bytes each."""
    return base64.b64encode(values.float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def unpacked(text: str, *shape: int) -> np.ndarray:
    """What `packed` took; its last axis is what is left over by the others."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32).reshape(*shape, -1)
