"""Projects of the VGG Image Annotator, version 3: temporal segments of videos in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uniformerv2.spans.formats.label_file import FormatError, LabelFile, SpanRow, entries, table, timed
from uniformerv2.text import short_json

NO_SEGMENT = "no temporal segment"
_CHECKBOX = 2  # the type of an attribute that may have several of its options


def is_via(file: LabelFile) -> bool:
    found = table(file.json)
    return {"project", "attribute", "metadata"} <= found.keys() or any(name.startswith("_via_") for name in found)


def read_via(file: LabelFile) -> Iterator[SpanRow]:
    """Each attribute that a segment has gives it a label; the attributes are its tiers."""
    project = file.json
    version = table(project.get("project")).get("data_format_version", "3")  # the first releases did not tell
    if "metadata" not in project or str(version).partition(".")[0] != "3":
        raise FormatError(f"{file.path}: a project of another version of VIA; save it with VIA 3 (video annotator)")
    attributes = {key: table(of) for key, of in table(project["attribute"]).items()}
    for number, entry in enumerate(table(project["metadata"]).values(), start=1):
        row = SpanRow(number, _videos(project, str(table(entry).get("vid", ""))))
        match entry:
            case {"z": [start, end], "av": dict() as values}:
                labels = [one for key, value in values.items() for one in _labels(attributes.get(key, {}), value)]
                for tier, label in labels or [("", "")]:
                    yield timed(row._replace(label=label, tier=tier), start, end)
            case {"z": list()}:
                yield row._replace(skip=NO_SEGMENT)
            case _:
                found = short_json(entry, longest=80)
                yield row._replace(wrong=f'found {found}, expected "z": [start, end] and "av"')


def _videos(project: Mapping[str, Any], view: str) -> tuple[str, ...]:
    """The names of the first file of a view."""
    files = table(table(project.get("view")).get(view)).get("fid_list")
    found = table(table(project.get("file")).get(str((entries(files) or [view])[0])))
    names = (found.get("fname"), str(found.get("src", "")).rpartition("/")[2])
    return tuple(dict.fromkeys(str(name) for name in names if name)) or ("",)


def _labels(attribute: Mapping[str, Any], value: object) -> Iterator[tuple[str, str]]:
    """What a value says: a text, or the numbers of options."""
    options, tier = table(attribute.get("options")), str(attribute.get("aname", ""))
    text = str(attribute.get("default_option_id", "")) if value == "_DEFAULT" else str(value)
    for part in text.split(",") if attribute.get("type") == _CHECKBOX else [text]:
        if label := str(options.get(part, part)).strip():
            yield tier, label
