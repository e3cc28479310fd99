"""The formats by name, and which one a file is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uniformerv2.spans.formats.activitynet import is_activitynet, read_activitynet, write_ground_truth, write_results
from uniformerv2.spans.formats.charades import is_charades, read_charades
from uniformerv2.spans.formats.cvat import is_cvat, read_cvat, write_cvat
from uniformerv2.spans.formats.edl import is_edl, read_edl, write_edl
from uniformerv2.spans.formats.elan import is_elan, read_elan
from uniformerv2.spans.formats.label_file import FormatError, LabelFile, SpanRow, UnknownFormat, Writer
from uniformerv2.spans.formats.label_studio import is_label_studio, read_label_studio, write_label_studio
from uniformerv2.spans.formats.subtitles import is_srt, is_vtt, read_cues, write_srt, write_vtt
from uniformerv2.spans.formats.tables import is_table, read_table, write_table
from uniformerv2.spans.formats.thumos import is_thumos, read_thumos
from uniformerv2.spans.formats.via import is_via, read_via
from uniformerv2.spans.formats.x_anylabeling import is_x_anylabeling, read_x_anylabeling


@dataclass(frozen=True)
class SpanFormat:
    """How spans are read from a format, and written if they can be."""

    is_it: Callable[[LabelFile], bool]  # whether a file is of this format
    read: Callable[[LabelFile], Iterator[SpanRow]]
    write: Writer | None = None
    suffix: str = ""  # of what is written
    one_video: bool = False  # a file holds the spans of one video


FORMATS = {
    "activitynet": SpanFormat(is_activitynet, read_activitynet, write_results, ".json"),
    "label_studio": SpanFormat(is_label_studio, read_label_studio, write_label_studio, ".json"),
    "x_anylabeling": SpanFormat(is_x_anylabeling, read_x_anylabeling),
    "via": SpanFormat(is_via, read_via),
    "cvat": SpanFormat(is_cvat, read_cvat, write_cvat, ".xml", one_video=True),
    "elan": SpanFormat(is_elan, read_elan),
    "vtt": SpanFormat(is_vtt, read_cues, write_vtt, ".vtt", one_video=True),
    "srt": SpanFormat(is_srt, read_cues, write_srt, ".srt", one_video=True),
    "edl": SpanFormat(is_edl, read_edl, write_edl, ".edl"),
    "charades": SpanFormat(is_charades, read_charades),
    "thumos": SpanFormat(is_thumos, read_thumos),
    "csv": SpanFormat(is_table, read_table, write_table, ".csv"),
}
"""Those that are told apart best come first: a file is of the first format that it may be of."""

WRITTEN = {
    **{name: of for name, of in FORMATS.items() if of.write},
    "activitynet_truth": SpanFormat(is_activitynet, read_activitynet, write_ground_truth, ".json"),
}
"""Of several of one suffix, the first is what the suffix stands for."""


def format_of(file: LabelFile, name: str | None = None) -> SpanFormat:
    """The format of a file: the named one, or the one that its content has. Raises FormatError where it has none."""
    if name is not None:
        if not FORMATS[name].is_it(file):
            raise FormatError(f"{file.path}: this is no file of the format {name}; without a format it is looked for")
        return FORMATS[name]
    for one in FORMATS.values():
        if one.is_it(file):
            return one
    raise UnknownFormat(f"{file.path}: no spans in a known format; expected one of {', '.join(FORMATS)}")
