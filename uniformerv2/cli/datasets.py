"""The commands of `uniformerv2 data`: manifests out of published annotations, checked, merged, packed and exported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from uniformerv2.cli.options import (
    Classes,
    Data,
    Json,
    Limit,
    NumFrames,
    OptionalOutput,
    Output,
    Root,
    Split,
    Workers,
    values,
)
from uniformerv2.cli.output import note, print_line, print_table
from uniformerv2.curation.findings import KEPT, FindingKind
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS

if TYPE_CHECKING:
    from uniformerv2.curation.check import CheckReport
    from uniformerv2.curation.importers import ImportResult
    from uniformerv2.curation.kinetics710 import MergeResult
    from uniformerv2.curation.pack import PackReport

Order = Annotated[
    Literal["official", "mmaction2"],
    arg(
        help="Which class list numbers and spellings of labels belong to: that of the official checkpoints, or that of "
        "mmaction2, which has the names that the owners publish."
    ),
]


_Both = Literal["activitynet", "label_studio", "cvat", "vtt", "srt", "edl", "csv"]
WrittenFormat = Literal[_Both, "activitynet_truth"]
SpanFormat = Literal[_Both, "x_anylabeling", "via", "elan", "charades", "thumos"]


@dataclass(frozen=True)
class Import:
    """Make a manifest out of the annotations that a dataset's owner publishes and the videos that are there.

    Rows without a video are counted by cause and left out; docs/datasets.md says what each dataset should look like.
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """kinetics400, kinetics600, kinetics700, kinetics700_2020, kinetics710, moments_in_time, something_something_v1,
    something_something_v2, activitynet, hacs, ucf101, hmdb51, ava, manifest (a CSV or Parquet manifest), folder (one
    folder per class) or spans (labels over time, as benchmarks and labelling tools write them); short names such as
    k400 and ssv2 will do."""
    videos: Path
    """Folder of the videos, however deep they lie in it."""
    output: Output
    """The manifest: .csv or .parquet."""
    annotations: tuple[Path, ...] = ()
    """Files as their owner publishes them, or a folder of them; none where there is a folder per class."""
    split: Literal["train", "val", "test"] | None = None
    """Only rows of this split; files that do not state a split belong to it."""
    fold: Literal[1, 2, 3] | None = None
    """Which of the three splits of UCF101 and HMDB51."""
    format: Literal["owner", "official"] | SpanFormat = "owner"
    """owner: what the dataset's owner publishes, and for spans the format that a file's content has; official: the
    UniFormerV2 lists of paths and class numbers; others: the format of files of spans."""
    order: Order = "official"
    untrimmed: FlagCreatePairsOff[bool] = False
    """Kinetics: a file called by its YouTube id alone is the whole video, not the clip of ten seconds."""
    tier: str | None = None
    """Spans: only those of this tier (ELAN), attribute (VIA) or control (Label Studio)."""
    frame_rate: float | None = None
    """Spans: frames/s in which frames are counted, such as Label Studio's frameRate; None: the video's own frames."""
    root: Root = None
    left_out: Path | None = None
    """CSV file that names every row left out, with its cause."""
    strict: FlagCreatePairsOff[bool] = False
    """A row without its video or label is an error."""
    lenient: FlagCreatePairsOff[bool] = False
    """Count and leave out rows that are invalid or contradict an earlier row, instead of ending with an error."""

    def run(self) -> int:
        if self.strict and self.lenient:
            raise RecipeError("--strict and --lenient contradict each other; give one of them")
        is_span_format = self.format not in ("owner", "official")
        if self.dataset != "spans" and (is_span_format or self.tier or self.frame_rate):
            raise RecipeError(
                f"formats of spans, --tier and --frame-rate are for `data import spans`, not for {self.dataset}"
            )
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise RecipeError(f"--frame-rate is {self.frame_rate:g}; it must be more than 0 frames/s")
        from uniformerv2.curation.importers import ImportOptions, import_dataset

        where = ("dataset", "annotations", "videos", "output", "root", "left_out")
        formats: dict[str, Any] = {"official_lists": self.format == "official"}
        if is_span_format:
            formats["span_format"] = self.format
        result = import_dataset(
            **{name: getattr(self, name) for name in where},
            options=ImportOptions(**formats, **values(self, *where, "format")),
        )
        _print_imported(result, self.output, self.order)
        return 0


@dataclass(frozen=True)
class Kinetics710:
    """Merge the training sets of Kinetics-400, 600 and 700 into Kinetics-710.

    Each video is in it once, and none that is in a validation or test set of the three. Lists are the CSV files of the
    owner, or manifests whose files are called by their YouTube id.
    """

    kinetics400: tuple[Path, ...]
    """The training list of Kinetics-400, then all of its validation and test lists."""
    kinetics600: tuple[Path, ...]
    """The same of Kinetics-600."""
    kinetics700: tuple[Path, ...]
    """The same of Kinetics-700."""
    output: Output
    """New folder for kinetics710.csv, labels.txt, map_kinetics400.json (and 600, 700) and report.json."""
    order: Order = "official"
    videos: Path | None = None
    """Folder with the files of the owner's lists; None: they are called ID_000010_000020.mp4."""

    def run(self) -> int:
        from uniformerv2.curation.kinetics710 import merge_kinetics

        lists = values(self, "output", "order", "videos")
        merged = merge_kinetics(lists, self.output, order=self.order, videos=self.videos)
        _print_merged(merged, self.output)
        return 0


@dataclass(frozen=True)
class Check:
    """Decode some frames of every video of a manifest, and leave out the rows that cannot be trusted.

    The rows that pass are written to a clean manifest, all that was found to a table. A check that was stopped goes on
    when it is run again.
    """

    data: Data
    root: Root = None
    classes: Classes = None
    output: OptionalOutput = None
    """The clean manifest; None: NAME.clean.csv beside the manifest."""
    findings: Path | None = None
    """Table of all findings; None: NAME.findings.csv beside the manifest."""
    num_frames: NumFrames = 8
    minimum_seconds: float = 0.0
    """A row must last so long."""
    keep: tuple[FindingKind, ...] = KEPT
    """Findings that are reported, but leave a row in the manifest."""
    workers: Workers = WORKERS
    limit: Limit = ()
    json: Json = False

    def run(self) -> int:
        import json

        from uniformerv2.curation.check import check_manifest

        data = Path(os.path.abspath(self.data))
        output = self.output or data.with_name(data.stem + ".clean.csv")
        table = self.findings or data.with_name(data.stem + ".findings.csv")
        options = values(self, "output", "findings", "limit", "json")
        result = check_manifest(**options, output=output, findings=table, progress=True)
        if self.json:
            print(json.dumps(result.to_json(), indent=2))
            return 0
        _print_check(result)
        print_line(f"written to {output} and {table}")
        root = self.root or (data if data.is_dir() else data.parent)
        if root.resolve() != output.parent.resolve():
            note(f"the paths in {output.name} are relative to {root}: use it with --root {root}")
        return 0


@dataclass(frozen=True)
class Shards:
    """Write the videos of a manifest as tar files in the WebDataset convention.

    A shard holds videos byte for byte, each with its label. The folder, or one shard, will do wherever a manifest does.
    """

    data: Data
    output: Output
    """New folder for shard-000000.tar and so on, and classes.txt."""
    per_shard: int = 1000
    """Videos of a shard."""
    root: Root = None
    classes: Classes = None
    shuffle: int | None = None
    """Seed to shuffle the videos by, for programs that stream shards; None: in the order of the manifest."""
    limit: Limit = ()

    def run(self) -> int:
        import random

        from uniformerv2.data.shards import write_shards
        from uniformerv2.data.sources import read_annotations

        rows = read_annotations(self.data, root=self.root, classes=self.classes)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(rows)
        shards = write_shards(rows, self.output, per_shard=self.per_shard)
        videos = len({row.path for row in rows})
        print_line(f"{videos} videos and {len(rows)} rows written to {len(shards)} shards in {self.output}")
        return 0


@dataclass(frozen=True)
class Pack:
    """Encode every video of a manifest once more, so that training reads clips of it many times as fast.

    Frames and times stay, so that intervals hold and sampling is the same; videos become small, H.264, without sound.
    The new folder has a manifest with the same rows. Work that was stopped goes on when the command is given again.
    """

    data: Data
    output: Output
    """New folder for manifest.csv, report.json and the videos, or one where this command was stopped."""
    short_side: int = 256
    """Pixels, even; videos with a longer one are resized, none is enlarged."""
    keyframe_every: int = 1
    """Frames from one key frame to the next; 1 is read fastest, more is smaller."""
    crf: int = 23
    """Quality as x264 counts it: 0 (best) to 51."""
    shards: FlagCreatePairsOff[bool] = False
    """Write tar shards in the WebDataset convention instead of files."""
    per_shard: int = 1000
    """Videos of a shard."""
    root: Root = None
    classes: Classes = None
    workers: Workers = WORKERS
    limit: Limit = ()
    json: Json = False

    def run(self) -> int:
        import json

        from uniformerv2.curation.pack import pack

        report = pack(**values(self, "limit", "json"), progress=True)
        if self.json:
            print(json.dumps(report.to_json(), indent=2))
        else:
            _print_packed(report)
        return 0


@dataclass(frozen=True)
class Export:
    """Write the spans of a manifest in the format of a labelling tool, a benchmark, subtitles or an edit list.

    Rows without times are spans of whole videos. A file of SRT, VTT or CVAT holds one video: for several give a folder.
    """

    manifest: Annotated[Positional[Path], arg(metavar="MANIFEST", help="CSV or Parquet, path,label,start,end.")]
    output: Output
    """The file, or a new folder for a file of each video."""
    format: WrittenFormat | None = None
    """activitynet: `results`, as predictions have them; activitynet_truth: `database`, which predictions are scored
    against; None: by the suffix of the output, where .json is activitynet and .xml CVAT's."""
    root: Root = None
    split: Split = "all"

    def run(self) -> int:
        from uniformerv2.data.manifest import manifest_root
        from uniformerv2.spans.files import write_manifest_spans

        root = self.root or manifest_root(self.manifest)
        spans, files = write_manifest_spans(self.manifest, self.output, self.format, root=root, split=self.split)
        print_line(f"{spans} spans written to {len(files)} file(s): {self.output}")
        return 0


@dataclass(frozen=True)
class Datasets:
    """Prepare datasets: import published annotations, check videos, merge Kinetics, pack for training, export spans."""

    command: OmitArgPrefixes[OmitSubcommandPrefixes[Import | Check | Export | Kinetics710 | Pack | Shards]]

    def run(self) -> int:
        return self.command.run()


def _print_check(result: CheckReport) -> None:
    print_table("findings", ("finding", "rows", "left out", "first"), _finding_lines(result), numbers=("rows",))
    columns = ("split", "rows", "labels", "fewest", "most")
    print_table("rows that pass", columns, _split_lines(result), numbers=("rows", "labels"))
    for name, text in _statistic_lines(result):
        print_line(f"{name:<10}{text}")
    leaks = len({finding.row for finding in result.findings if finding.kind in ("leak", "near-leak")})
    if leaks:
        print_line(f"LEAK: {leaks} row(s) of train show what val or test rows show")
    left_out = len(result.left_out)
    print_line(f"{len(result.rows) - left_out} of {len(result.rows)} rows pass, {left_out} left out")


def _finding_lines(result: CheckReport) -> Iterator[tuple[object, ...]]:
    for kind, count in result.counts().items():
        first = next(finding for finding in result.findings if finding.kind == kind)
        row = result.rows[first.row]
        yield kind, count, "no" if kind in result.keep else "yes", f"line {row.line}: {row.name}: {first.detail}"


def _split_lines(result: CheckReport) -> Iterator[tuple[object, ...]]:
    for split, counts in result.labels().items():
        ends = (min(counts, key=lambda label: counts[label]), max(counts, key=lambda label: counts[label]))
        yield split or "-", sum(counts.values()), len(counts), *(f"{label}: {counts[label]}" for label in ends)


def _statistic_lines(result: CheckReport) -> Iterator[tuple[str, str]]:
    statistics = result.statistics()
    for name in ("codecs", "sizes", "rates"):
        counted = [f"{value} ({count})" for value, count in statistics[name].items()]
        more = f", {len(counted) - 5} more" if len(counted) > 5 else ""
        if counted:
            yield name, ", ".join(counted[:5]) + more
    if seconds := statistics["seconds"]:
        total = timedelta(seconds=round(seconds["total"]))
        yield "lasting", "{shortest:g} to {longest:g} s, median {median:g} s".format(**seconds) + f", {total} in all"


def _print_imported(result: ImportResult, output: Path, order: str) -> None:
    counts = [("written", result.written, ""), *((c, n, result.example[c]) for c, n in result.left_out.most_common())]
    print_table(f"{result.rows} rows", ("", "rows", "the first"), counts, numbers=("rows",))
    if result.respelled:
        some = ", ".join(f"{old!r} as {new!r}" for old, new in list(result.respelled.items())[:3])
        note(f"{len(result.respelled)} labels are written as the {order} list has them, such as {some}")
    print_line(f"written to {output}")


def _print_merged(merged: MergeResult, output: Path) -> None:
    rows = []
    for name, edition in merged.editions.items():
        rows += [(name, "training rows", edition.rows), ("", "kept", edition.kept)]
        rows += [("", cause, count) for cause, count in edition.left_out.most_common()]
    print_table(f"Kinetics-710, {merged.videos} videos", ("edition", "", "rows"), rows, numbers=("rows",))
    for name, edition in merged.editions.items():
        if wrong := {split: count for split, count in edition.splits.items() if split not in ("", "train")}:
            note(f"rows of the training list of {name} say that they are of another split: {wrong}")
    if merged.empty_classes:
        note(f"{len(merged.empty_classes)} classes have no video, such as {merged.empty_classes[0]!r}")
    print_line(f"written to {output}")


def _print_packed(report: PackReport) -> None:
    found = [("left out", of.reason) for of in report.unreadable]
    found += [("damaged", f"{of.path}: {of.reason}") for of in report.damaged]
    print_table("videos", ("", "reason"), found[:20])
    if len(found) > 20:
        print_line(f"... and {len(found) - 20} more, all in report.json")
    before, after = (size / 1e6 for size in (report.bytes_before, report.bytes_after))
    print_line(
        f"{report.videos} videos of {report.frames} frames packed: {report.resized} resized, {report.padded} padded"
    )
    print_line(f"{before:.1f} MB before, {after:.1f} MB after ({after / before:.2f} times)")
    lost = f"{len(report.unreadable)} videos and their {report.rows_left_out} rows left out"
    print_line(f"{report.rows - report.rows_left_out} of {report.rows} rows written to {report.manifest}; {lost}")
