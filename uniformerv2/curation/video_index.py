"""The videos below a folder, found by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniformerv2.curation.published import split_of, stem_of
from uniformerv2.data.folders import list_folder
from uniformerv2.text import normalised


class VideoIndex:
    """The videos below a folder by their names; it is read once, so that millions of rows are matched in seconds.

    A video is a file with one of `VIDEO_SUFFIXES`, or a folder of images without videos. Links are followed; hidden
    files and folders are skipped.

    Args:
        folder: read when the index is made.
    """

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, str | tuple[str, ...]] = {}  # name without suffix -> paths from the folder
        for path in list_folder(folder).videos:
            name = normalised(stem_of(path).rpartition("/")[2])
            former = self._paths.setdefault(name, path)
            if former is not path:
                self._paths[name] = (*((former,) if isinstance(former, str) else former), path)

    def find(self, name: str, hints: Sequence[str | None] = ()) -> tuple[str, ...]:
        """Paths of the videos of a name from the folder of this index, sorted; of several, any may be meant.

        Args:
            name: the end of its path, without suffix. Folders in it must be those that the video lies in, as far as
                there are any on both sides; "_" counts as " ", and case is ignored.
            hints: folders that decide between several videos of that name, such as its class and its split.
        """
        folders, _, stem = name.rpartition("/")
        found = self._paths.get(normalised(stem), ())
        if isinstance(found, str):
            found = (found,)
        if folders:
            found = tuple(path for path in found if _agrees(path, folders))
        return found if len(found) < 2 else _most_hinted(found, {_plain(hint) for hint in hints if hint})


def _agrees(path: str, folders: str) -> bool:
    own, wanted = path.split("/")[:-1], [part for part in folders.split("/") if part not in ("", ".")]
    return all(_plain(one) == _plain(other) for one, other in zip(reversed(own), reversed(wanted), strict=False))


def _most_hinted(paths: Sequence[str], hints: set[str]) -> tuple[str, ...]:
    def agreement(path: str) -> int:
        folders = path.split("/")[:-1]
        return len(hints & {*map(_plain, folders)}) + len(hints & {*map(split_of, folders)})

    most = max(map(agreement, paths))
    return tuple(sorted(path for path in paths if agreement(path) == most))


def _plain(folder: str) -> str:
    return normalised(folder).casefold().replace("_", " ")
