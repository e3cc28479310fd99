"""The videos below a folder, found by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from uniformerv2.curation.published import split_of, stem_of
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES


class VideoIndex:
    """The videos below a folder by their names; it is read once, so that millions of rows are matched in seconds.

    A video is a file with one of `VIDEO_SUFFIXES`, or a folder of images without videos. Links are followed; hidden
    files and folders are skipped.

    Args:
        folder: read when the index is made.
    """

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, str | tuple[str, ...]] = {}  # name without suffix -> paths from the folder
        for path in _videos_below(str(folder)):
            name = stem_of(path).rpartition("/")[2]
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
        found = self._paths.get(stem, ())
        if isinstance(found, str):
            found = (found,)
        if folders:
            found = tuple(path for path in found if _agrees(path, folders))
        return found if len(found) < 2 else _most_hinted(found, {_plain(hint) for hint in hints if hint})


def _videos_below(root: str) -> Iterator[str]:
    """Paths from the root, with "/"."""
    seen = {os.path.realpath(root)}  # links may lead in circles
    folders = [""]
    while folders:
        folder = folders.pop()
        images = videos = 0
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                if suffix in IMAGE_SUFFIXES:
                    images += 1
                elif entry.is_dir():
                    if not entry.is_symlink() or (real := os.path.realpath(entry.path)) not in seen:
                        folders.append(f"{folder}{entry.name}/")
                        seen |= {real} if entry.is_symlink() else set()
                elif suffix in VIDEO_SUFFIXES:
                    videos += 1
                    yield folder + entry.name
        if images and not videos and folder:
            yield folder[:-1]


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
    return folder.casefold().replace("_", " ")
