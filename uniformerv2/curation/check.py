"""Whether a manifest can be trusted: every file is opened, and rows with something wrong are named and left out.

Evidence and judgement are separate. `probe_video` finds what is in a file; that takes long, so its results go to a
journal, where the next run finds them. `judge` decides at the end, in the order of the manifest, so that the result
does not depend on the processes or on how often the check was stopped.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from uniformerv2.curation.findings import FINDING_KINDS, KEPT, Finding, FindingKind, ManifestRow
from uniformerv2.curation.judging import intervals_of, judge
from uniformerv2.curation.probe import Probe, probe_video
from uniformerv2.data.annotations import Interval
from uniformerv2.data.content import file_stamp
from uniformerv2.data.folders import read_class_folders
from uniformerv2.data.journal import Journal
from uniformerv2.data.manifest import (
    MANIFEST_COLUMNS,
    find_respelled,
    manifest_root,
    manifest_rows,
    open_table,
    read_classes,
)
from uniformerv2.data.processes import Crash, run_tasks
from uniformerv2.data.sources import Classes
from uniformerv2.data.tables import PARQUET_SUFFIXES, check_names, check_target, relative_to, write_table
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.progress import bar

TABLE_COLUMNS = {"line": int} | MANIFEST_COLUMNS | {"finding": str, "left_out": str, "detail": str}

_JOURNAL = 1  # version of what it holds; files in a journal of another version are read again

ProbeVideo = Callable[[Path, Sequence[Interval], int], Probe]
_FileState = tuple[str, int, int, int, tuple[Interval, ...]]  # name, bytes, time of change, frames, intervals


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    rows: list[ManifestRow]
    probes: dict[str, Probe]  # by name; without the missing files
    findings: list[Finding]  # in the order of the manifest
    keep: frozenset[FindingKind]  # kinds of findings that leave a row in the manifest

    @cached_property
    def left_out(self) -> set[int]:
        """Positions of the rows that are not in the clean manifest."""
        return {finding.row for finding in self.findings if finding.kind not in self.keep}

    def counts(self) -> dict[str, int]:
        """Rows with each kind of finding."""
        counts = Counter(kind for kind, _ in {(finding.kind, finding.row) for finding in self.findings})
        return {kind: counts[kind] for kind in FINDING_KINDS if counts[kind]}

    def labels(self) -> dict[str, dict[str, int]]:
        """Rows that pass, by split ("" where there is none) and label."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for position, row in enumerate(self.rows):
            if position not in self.left_out:
                counts[row.annotation.split or ""][row.annotation.label] += 1
        return {split: dict(sorted(counts[split].items())) for split in sorted(counts)}

    def statistics(self) -> dict[str, Any]:
        """Codecs, frame sizes and frame rates with their counts, and durations in seconds, of the readable files."""
        probes = [probe for probe in self.probes.values() if not probe.error and not probe.fatal]
        seconds = sorted(probe.seconds for probe in probes)
        return {
            "readable": len(probes),
            "codecs": _counted(probe.codec for probe in probes),
            "sizes": _counted(f"{probe.width}x{probe.height}" for probe in probes),
            "rates": _counted(f"{probe.rate:.2f}".rstrip("0").rstrip(".") for probe in probes),
            "seconds": {
                "shortest": round(seconds[0], 3),
                "median": round(seconds[len(seconds) // 2], 3),
                "longest": round(seconds[-1], 3),
                "total": round(sum(seconds), 3),
            }
            if seconds
            else {},
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, in the order of the manifest; equal for an equal manifest and equal files."""
        return {
            "rows": len(self.rows),
            "files": len({row.name for row in self.rows}),
            "passed": len(self.rows) - len(self.left_out),
            "left_out": len(self.left_out),
            "counts": self.counts(),
            "findings": [self._finding_json(finding) for finding in self.findings],
            "labels": self.labels(),
            "statistics": self.statistics(),
        }

    def _finding_json(self, finding: Finding) -> dict[str, Any]:
        row = self.rows[finding.row]
        values: dict[str, Any] = {"line": row.line, "path": row.name, "finding": finding.kind, "detail": finding.detail}
        if finding.other is not None:
            other = self.rows[finding.other]
            values["other"] = {"line": other.line, "path": other.name, "split": other.annotation.split}
        return values | {"left_out": finding.kind not in self.keep}


def check_manifest(
    data: str | Path,
    output: str | Path,
    *,
    findings: str | Path | None = None,
    root: str | Path | None = None,
    classes: Classes | None = None,
    num_frames: int = 8,
    minimum_seconds: float = 0.0,
    keep: Collection[FindingKind] = KEPT,
    workers: int = WORKERS,
    progress: bool = False,
    probe: ProbeVideo = probe_video,
) -> CheckReport:
    """Decode some frames of every video of a manifest, and write down which rows can be used.

    What is found in a file goes to a journal beside the output at once. A check that was stopped continues from it and
    has the same result; files that have changed are read again. The journal may be deleted.

    Args:
        data: a manifest, as for `read_annotations`, whose videos may be missing; or a folder with one folder per class.
        output: the clean manifest: the rows that pass, unchanged and in their order. Of a folder, the paths are
            relative to it.
        findings: table of all findings, CSV or Parquet; None: none.
        root, classes: as of `read_annotations`.
        num_frames: frames of a clip; the first, middle and last are decoded, and a row needs so many.
        minimum_seconds: a row must last so long.
        keep: kinds of findings that leave a row in the manifest.
        workers: processes that decode, each on one thread; a file that ends its process is a finding. With 0, this
            process decodes, and ends with such a file.
        progress: show a bar on stderr.
        probe: what reads a file; a function that other processes can import.

    Returns:
        The findings; the same are in the table.

    Raises:
        AnnotationError: an invalid manifest, or no folder to write to.
        RecipeError: invalid options.
    """
    data, output = Path(data), Path(output)
    table = None if findings is None else Path(findings)
    _check_files(data, output, table)
    _check_options(num_frames, minimum_seconds, keep, workers)
    rows = _read(data, root, classes)
    with Journal(output.with_name(output.name + ".journal")) as journal:
        probes, missing = _probe_all(rows, num_frames, journal, probe, workers, progress)
    found = judge(rows, probes, missing, num_frames=num_frames, minimum_seconds=minimum_seconds, keep=frozenset(keep))
    result = CheckReport(rows, probes, found, frozenset(keep))
    if table:
        write_table(table, TABLE_COLUMNS, _table_rows(result))
    _write_clean(data, output, result)
    return result


def _check_options(num_frames: int, minimum_seconds: float, keep: Collection[FindingKind], workers: int) -> None:
    if num_frames < 1:
        raise RecipeError(f"the number of frames must be at least 1, got {num_frames}")
    if not 0 <= minimum_seconds < math.inf:
        raise RecipeError(f"the minimum of seconds must be 0 or more, got {minimum_seconds}")
    if workers < 0:
        raise RecipeError(f"the number of workers must be 0 or more, got {workers}")
    if unknown := sorted(set(keep) - set(FINDING_KINDS)):
        raise RecipeError(f"no such finding to keep: {', '.join(unknown)}; there are {', '.join(FINDING_KINDS)}")


def _check_files(manifest: Path, output: Path, table: Path | None) -> None:
    files = [path.absolute() for path in (manifest, output, table) if path]
    if len(set(files)) < len(files):
        raise RecipeError(f"{output}: the manifest, the clean manifest and the table must be different files")
    for target in filter(None, (output, table)):
        check_target(target)


def _read(manifest: Path, root: str | Path | None, classes: Classes | None) -> list[ManifestRow]:
    if manifest.is_dir():
        folder, read = manifest, read_class_folders(manifest)[0]
        lines = list(range(1, len(read) + 1))
    elif manifest.exists():
        folder = manifest_root(manifest) if root is None else Path(root)
        names = () if classes is None else read_classes(classes)
        numbered = list(manifest_rows(manifest, folder, classes=names))
        lines, read = [line for line, _ in numbered], find_respelled(manifest, [row for _, row in numbered])
    else:
        raise AnnotationError(f"{manifest}: no such folder or manifest")
    if not read:
        raise AnnotationError(f"{manifest}: no rows below the line of column names")
    shorten = relative_to(folder)
    rows = [ManifestRow(line, shorten(str(row.path)), row) for line, row in zip(lines, read, strict=True)]
    check_names(name for row in rows for name in (row.name, row.annotation.label))
    return rows


# --- evidence


def _probe_all(
    rows: Sequence[ManifestRow], num_frames: int, journal: Journal, probe: ProbeVideo, workers: int, progress: bool
) -> tuple[dict[str, Probe], dict[str, str]]:
    """What is in every file, by name in the order of the manifest, and why the missing files are missing."""
    intervals = intervals_of(rows)
    paths = {row.name: row.annotation.path for row in rows}
    known = dict(_known(journal))
    states: dict[Path, _FileState] = {}  # of the files that are being read
    probes: dict[str, Probe] = {}
    missing: dict[str, str] = {}

    def tasks() -> Iterator[tuple[Path, tuple[Interval, ...], int]]:
        for name, path in paths.items():
            try:
                state = (name, *file_stamp(path), num_frames, intervals[name])
            except OSError as error:
                missing[name] = error.strerror or str(error)
                advance(1)
                continue
            if state in known:
                probes[name] = known[state]
                advance(1)
            else:
                states[path] = state
                yield path, intervals[name], num_frames

    with bar("checking", len(paths), progress=progress) as advance:
        for (path, *_), result in run_tasks(partial(_probe, probe), tasks(), workers=workers):
            state = states.pop(path)
            found = Probe(fatal=result.cause) if isinstance(result, Crash) else result
            journal.add(_record(state, found))
            probes[state[0]] = found
            advance(1)
    return {name: probes[name] for name in paths if name in probes}, missing


def _probe(probe: ProbeVideo, task: tuple[Any, ...]) -> Probe:
    return probe(*task)


def _record(state: _FileState, found: Probe) -> dict[str, Any]:
    names = ("path", "size", "mtime", "frames", "intervals")
    return {"version": _JOURNAL, **dict(zip(names, state, strict=True)), "found": found.to_json()}


def _known(journal: Journal) -> Iterator[tuple[_FileState, Probe]]:
    for record in journal.records():
        try:
            intervals = tuple((start, end) for start, end in record["intervals"])
            state = (record["path"], record["size"], record["mtime"], record["frames"], intervals)
            if record["version"] == _JOURNAL:
                hash(state)
                yield state, Probe.from_json(record["found"])
        except (KeyError, TypeError, ValueError):
            continue  # not of this program, so the file is read again


# --- what is written


def _table_rows(result: CheckReport) -> Iterator[tuple[object, ...]]:
    for finding in result.findings:
        row = result.rows[finding.row]
        left_out = "no" if finding.kind in result.keep else "yes"
        annotation = row.annotation
        labelled = (annotation.label, annotation.start, annotation.end, annotation.split)
        yield row.line, row.name, *labelled, finding.kind, left_out, finding.detail


def _write_clean(manifest: Path, output: Path, result: CheckReport) -> None:
    """The rows that pass, cell by cell as they are in the manifest; of a folder or a list, with names of columns."""
    lines = {result.rows[position].line for position in result.left_out}
    table = None if manifest.is_dir() else open_table(manifest)
    if table is None or not table.header:
        passed = [row for row in result.rows if row.line not in lines]
        columns: dict[str, type] = {"path": str, "label": str}
        if any(row.annotation.split for row in passed):
            columns["split"] = str
        cells = ((row.name, row.annotation.label, row.annotation.split)[: len(columns)] for row in passed)
        write_table(output, columns, cells)
        return
    if len(set(table.header)) < len(table.header):
        raise AnnotationError(f"{manifest}: line 1 names a column twice: {', '.join(table.header)}")
    meant = {place: column for column, place in table.places.items()}
    kinds = {name: MANIFEST_COLUMNS.get(meant.get(place, ""), str) for place, name in enumerate(table.header)}
    rows = (row + [""] * (len(table.header) - len(row)) for line, row in table.cells() if line not in lines)
    typed = output.suffix.lower() in PARQUET_SUFFIXES
    write_table(output, kinds, (_typed(row, kinds.values()) for row in rows) if typed else rows)


def _typed(cells: Sequence[str], kinds: Iterable[type]) -> list[object]:
    return [kind(cell) if cell.strip() else None for cell, kind in zip(cells, kinds, strict=True)]


def _counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value comes, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))
