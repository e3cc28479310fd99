"""Videos in a folder, however deep, and what the names of the folders around them say."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uniformerv2.data.annotations import SPLIT_NAMES, Annotation
from uniformerv2.errors import AnnotationError
from uniformerv2.progress import LineTimer, say
from uniformerv2.text import normalised
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@dataclass
class FolderListing:
    """What is in a folder: paths from it, with "/", in no order."""

    videos: list[str] = field(default_factory=list)  # video files, and folders of images
    links: set[str] = field(default_factory=set)  # those of the videos that are links
    others: list[str] = field(default_factory=list)  # files that are neither
    repeated: list[str] = field(default_factory=list)  # links to folders that are read under another name


def list_folder(folder: str | Path) -> FolderListing:
    """Find the videos below a folder. Hidden files and folders are skipped; one warning tells of repeated folders.

    A line from time to time tells how far a large folder is read.

    A folder of images without videos is one video. Links are followed, but each folder is read once: where it lies,
    if that is below this folder, and not at all if it holds this folder.

    Raises:
        OSError: a folder cannot be read.
    """
    root, found = os.path.realpath(folder), FolderListing()
    seen: set[str] = set()
    folders = [("", root)]  # names from the root, and real paths
    links: list[str] = []  # that wait for what lies here itself
    timer = LineTimer()
    while folders or links:
        name, real = folders.pop() if folders else (links[0], os.path.realpath(os.path.join(root, links.pop(0))))
        if real in seen or (name and os.path.join(root, "").startswith(os.path.join(real, ""))):
            found.repeated.append(name)
            continue
        seen.add(real)
        if timer.passed():
            say(f"{folder}: {len(found.videos)} videos in {len(seen)} folders so far")
        inside, files = [], []
        with os.scandir(real) as entries:
            for entry in entries:
                if _is_folder(entry) and not entry.name.startswith("."):
                    inside.append(entry)
                elif not entry.name.startswith("."):
                    files.append((name + entry.name, entry))
        videos = [(path, entry) for path, entry in files if _suffix(path) in VIDEO_SUFFIXES]
        images = any(_suffix(path) in IMAGE_SUFFIXES for path, _ in files)
        is_class = name.count("/") == 1 and inside  # a stray image makes no video of it
        if name and images and not videos and not is_class:
            found.videos.append(name[:-1])
            continue
        found.videos += [path for path, _ in videos]
        found.links.update(path for path, entry in videos if entry.is_symlink())
        found.others += [path for path, _ in files if _suffix(path) not in VIDEO_SUFFIXES]
        links += sorted(f"{name}{entry.name}/" for entry in inside if entry.is_symlink())
        folders += [
            (f"{name}{entry.name}/", os.path.join(real, entry.name)) for entry in inside if not entry.is_symlink()
        ]
    if found.repeated:
        warnings.warn(
            f"{folder}: {len(found.repeated)} link(s) to folders that are read already are left out, "
            f"such as {found.repeated[0][:-1]}",
            stacklevel=1,
        )
    return found


def holds_frames(folder: Path) -> bool:
    """Whether a folder is one video: of images, and without video files."""
    suffixes = {child.suffix.lower() for child in folder.iterdir() if not child.name.startswith(".")}
    return not suffixes.isdisjoint(IMAGE_SUFFIXES) and suffixes.isdisjoint(VIDEO_SUFFIXES)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# --- folders of classes


def read_class_folders(folder: Path) -> tuple[list[Annotation], bool]:
    """The videos of a folder with one folder per class, in the order of their paths; see `read_annotations`.

    Returns:
        The rows, and whether some of the files are links.

    Raises:
        AnnotationError: no class folders, one without videos, or names that may mean splits or classes.
    """
    tops = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not tops:
        raise AnnotationError(f"{folder}: no class folders in it; expected {folder}/CLASS/VIDEO")
    listing = list_folder(folder)
    paths = sorted(path.split("/") for path in listing.videos)
    ignored = [
        *(path for path in listing.others if "/" in path),
        *("/".join(path) for path in paths if len(path) == 1 and path[0] not in tops),
    ]
    if ignored:
        warnings.warn(
            f"{folder}: ignored {len(ignored)} file(s) that are no videos of a class, such as {folder / ignored[0]}",
            stacklevel=1,
        )
    if _are_splits(folder, tops, paths):
        return _read_splits(folder, tops, paths), bool(listing.links)
    paths = [path for path in paths if len(path) > 1]
    _check_each_has_videos({top: folder / top for top in tops}, {path[0] for path in paths}, listing)
    below = {_split(path[1]) if len(path) > 2 else None for path in paths}
    if None in below:
        return [Annotation(folder.joinpath(*path), path[0]) for path in paths], bool(listing.links)
    rows = [Annotation(folder.joinpath(*path), path[0], split=_split(path[1])) for path in paths]
    _tell_splits(f"{folder}: the folders in each class", [path[1] for path in paths])
    return rows, bool(listing.links)


def _split(name: str) -> str | None:
    return SPLIT_NAMES.get(normalised(name).casefold())


def _are_splits(folder: Path, tops: Sequence[str], paths: Sequence[Sequence[str]]) -> bool:
    """Whether the folders at the top are splits, and not classes."""
    named = [top for top in tops if _split(top)]
    divided = [top for top in named if any(path[0] == top and len(path) > 2 for path in paths)]
    others = sorted({path[0] for path in paths if len(path) > 1} - {*named})
    how = "name the class and the split of each video in a manifest (path,label,split)"
    if not named or not any(path[0] in named for path in paths):
        return False
    if not others and not divided:
        raise AnnotationError(
            f"{folder}: {', '.join(named)} would be splits, but hold no class folders (expected "
            f"{named[0]}/CLASS/VIDEO); if these are the classes, {how}"
        )
    if others and len(divided) > 1:
        raise AnnotationError(
            f"{folder}: {', '.join(divided)} are named like splits, but {', '.join(others[:3])} beside them is none; "
            f"move it elsewhere, or {how}"
        )
    if others:
        warnings.warn(
            f"{folder}: {', '.join(named)} beside {others[0]} is read as a class, not as a split", stacklevel=1
        )
    return not others


def _read_splits(folder: Path, tops: Sequence[str], paths: Sequence[list[str]]) -> list[Annotation]:
    labelled = [path for path in paths if len(path) > 2]
    if unlabelled := ["/".join(path) for path in paths if len(path) == 2]:
        warnings.warn(
            f"{folder}: left out {len(unlabelled)} video(s) of splits that lie in no class folder, "
            f"such as {folder / unlabelled[0]}",
            stacklevel=1,
        )
    classes = {
        child.name: child
        for top in tops
        if _split(top)
        for child in sorted((folder / top).iterdir())
        if child.is_dir() and not child.name.startswith(".") and f"{top}/{child.name}" not in unlabelled
    }
    _check_each_has_videos(classes, {path[1] for path in labelled}, FolderListing())
    _tell_splits(str(folder), [path[0] for path in labelled])
    return [Annotation(folder.joinpath(*path), path[1], split=_split(path[0])) for path in labelled]


def _check_each_has_videos(classes: dict[str, Path], found: set[str], listing: FolderListing) -> None:
    for name, folder in classes.items():
        if name in found:
            continue
        if f"{name}/" in listing.repeated:
            raise AnnotationError(f"{folder}: a link to {folder.resolve()}, which is read already; remove the link")
        if name in listing.videos:
            raise AnnotationError(f"{folder}: images lie in this class folder itself; give each video a folder in it")
        raise AnnotationError(f"{folder}: no video in this class folder; add some or remove the folder")


def _tell_splits(where: str, names: Sequence[str]) -> None:
    counts = ", ".join(f"{name} ({count} videos)" for name, count in Counter(names).items())
    warnings.warn(
        f"{where} are splits, not classes: {counts}; if they are classes, name them in a manifest (path,label)",
        stacklevel=1,
    )
