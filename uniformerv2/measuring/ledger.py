"""Work in numbered parts that several processes share, that outlives them, and that is put together in order.

What a part gives must not depend on who does it or on what was done before: then neither the number of processes nor
a kill in the middle changes a single bit of the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.journal import Journal
from uniformerv2.data.tables import PARQUET_SUFFIXES, check_target
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import AnnotationError, RecipeError, UniFormerV2Error
from uniformerv2.model.uniformerv2 import UniFormerV2

Part = tuple[int, ...]
Record = dict[str, Any]  # what JSON can hold


class Ledger:
    """What each part gave, in this process, in the others, and in those of a run that was stopped.

    All processes of a group make one, and call `collect`, together.

    Args:
        journal: file that every result is added to at once; process i > 0 has one of its own, `journal`.i. None keeps
            the results in memory only.
        work: what decides the results, by name. A journal of other work is refused.
        resume: go on from the journals. If not, there must be none with results in it.

    Raises:
        RecipeError: a journal must not be used so; the message says why.
        AnnotationError: a journal cannot be written.
    """

    def __init__(self, journal: Path | None, work: Mapping[str, str], *, resume: bool) -> None:
        self._ranks = current_ranks()
        self._records: dict[Part, Record] = {}
        self._journal: Journal | None = None
        self._begun = False

        def known() -> list[Part]:
            if journal is not None:
                self._open(journal, dict(work), resume)
            return list(self._records)

        try:
            views = self._ranks.on_all_ranks(known)
        except UniFormerV2Error:
            self.close()
            raise
        self.done = {part for parts in views for part in parts}  # of all processes
        known_before = {part for parts in views[: self._ranks.rank] for part in parts}
        # of what several processes have read in the same files, the first keeps it
        self._records = {part: record for part, record in self._records.items() if part not in known_before}
        if self._journal is not None and not self._begun:
            self._journal.add({"work": dict(work)})

    def _open(self, path: Path, work: dict[str, str], resume: bool) -> None:
        files = _journals(path)
        self._records = {part: record for file in files for part, record in _read(file, work, resume)}
        own = path if self._ranks.first else path.with_name(f"{path.name}.{self._ranks.rank}")
        if not resume:
            for file in [own, *(file for file in files if self._ranks.first and _rank_of(file) >= self._ranks.world)]:
                file.unlink(missing_ok=True)
        self._journal = Journal(own)
        self._begun = any("work" in record for record in self._journal.records())

    def mine(self, count: int) -> list[int]:
        """Which of the numbers below `count` are for this process: one of every `world`."""
        return list(range(self._ranks.rank, count, self._ranks.world))

    def add(self, part: Part, record: Record) -> None:
        """Write down what a part gave."""
        if self._journal is not None:
            self._journal.add({"part": part, **record})
        self._records[part] = record
        self.done.add(part)

    def collect(self) -> dict[Part, Record]:
        """The results of all processes, in the order of the parts, in every process."""
        self.close()
        records = {part: one for some in self._ranks.gather(self._records) for part, one in some.items()}
        return dict(sorted(records.items()))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def check_targets(*files: Path | None) -> None:
    """Refuse files that could not be written at the end, before anything is computed.

    Raises:
        RecipeError: two of them are one.
        AnnotationError: there is no folder for one, or it is Parquet and there is no pyarrow.
    """
    targets = [file for file in files if file is not None]
    for target in targets:
        check_target(target)
        if target.suffix.lower() in PARQUET_SUFFIXES and find_spec("pyarrow") is None:
            raise AnnotationError(
                f'{target}: Parquet files need pyarrow: pip install "uniformerv2[data]"; or choose another suffix'
            )
    if len({target.absolute() for target in targets}) < len(targets):
        raise RecipeError(f"{targets[0]}: one file cannot hold two things; give another name to one of them")


def journal_beside(output: Path) -> Path:
    """The journal of a run that writes `output`."""
    return output.with_name(output.name + ".journal")


def remove_journals(path: Path) -> None:
    """Remove a journal and those of the other processes, once their results lie elsewhere."""
    for file in _journals(path):
        file.unlink(missing_ok=True)


def _journals(path: Path) -> list[Path]:
    name = re.compile(re.escape(path.name) + r"(\.\d+)?")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name)) if path.parent.is_dir() else []


def _rank_of(journal: Path) -> int:
    number = journal.suffix[1:]
    return int(number) if number.isdigit() else 0


def _read(file: Path, work: dict[str, str], resume: bool) -> Iterator[tuple[Part, Record]]:
    with Journal(file) as journal:
        begun = False
        for record in journal.records():
            if "work" in record:
                begun = True
                if resume:
                    _check_same(file, record["work"], work)
            elif begun and "part" in record:
                if not resume:
                    raise RecipeError(
                        f"{file}: holds what a run that was stopped had found; go on from there with --resume, "
                        "or delete the file"
                    )
                yield tuple(record.pop("part")), record


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


# --- what decides the results


def weights_digest(model: UniFormerV2) -> str:
    """A short text that no other model has: its tensors, architecture, preprocessing and labels."""
    return tensors_digest(model.state_dict(), [asdict(model.config), asdict(model.preprocessing), model.labels])


def tensors_digest(tensors: Mapping[str, Tensor], facts: object) -> str:
    """A short text that changes with the tensors and with the facts about them, which JSON can hold."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def videos_digest(annotations: Sequence[Annotation]) -> str:
    """How many videos, and a short text that changes with the rows and with the files that they name."""
    digest = hashlib.sha256()
    for row in annotations:
        line = [str(row.path), row.label, row.start, row.end, *_stamp(row.path)]
        digest.update(json.dumps(line).encode() + b"\n")
    return f"{len(annotations)} rows {digest.hexdigest()[:16]}"


def _stamp(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change in nanoseconds, of a file or of the shard that it is in; (0, 0) of neither."""
    for place in (path, *path.parents):
        with suppress(OSError):
            status = place.stat()
            return (status.st_size, status.st_mtime_ns) if place == path or place.is_file() else (0, 0)
    return 0, 0
