"""Videos encoded by several processes into one folder, so that a kill at any moment loses nothing that was done.

A video is written to a file of its own among the unfinished ones, takes its place when it is whole, and then a line of
the journal says so. A shard is written when all of its videos are there.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any, NamedTuple

from uniformerv2.atomic import umask, write_text
from uniformerv2.curation.encoding import Encoding, encode_video
from uniformerv2.data.annotations import Annotation, class_names
from uniformerv2.data.content import file_stamp
from uniformerv2.data.journal import Journal
from uniformerv2.data.processes import Crash, run_tasks
from uniformerv2.data.shards import CLASSES, video_source, write_shard
from uniformerv2.errors import AnnotationError, RecipeError, UniFormerV2Error, VideoError
from uniformerv2.progress import bar
from uniformerv2.text import short_digest
from uniformerv2.video.reader import VideoReader

JOURNAL, UNFINISHED = ".pack.jsonl", ".unfinished"  # in the packed folder

SUFFIX = ".mp4"

_BEGUN = "begun-"  # how the files begin that processes write to; packed videos have a suffix, these none


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be packed."""

    source: Path
    name: str  # of the packed file, below the packed folder or in its shard
    shard: str  # name of the file; "" where videos are files themselves
    rows: tuple[int, ...]  # positions of the annotations of it


class _Task(NamedTuple):
    name: str
    source: Path
    target: Path
    unfinished: Path  # folder
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of a video."""

    error: str = ""  # why there is no packed video; then there is nothing else
    damage: str = ""  # as its reader tells it
    bytes_before: int = 0
    bytes_after: int = 0
    frames: int = 0
    height: int = 0  # of the video as it was, in pixels
    width: int = 0


class Packing:
    """What is packed in a folder, found there and added to.

    Args:
        output: the folder.
        journal: in it.
        videos: all that belong into it, in order.
        annotations: their rows.

    Attributes:
        packed: what became of each video, by its name.
    """

    def __init__(
        self, output: Path, journal: Journal, videos: Sequence[Video], annotations: Sequence[Annotation]
    ) -> None:
        self._output, self._journal, self._annotations = output, journal, annotations
        self._videos = {video.name: video for video in videos}
        self._stamps = {video.name: _stamp(video.source) for video in videos}
        self._shards: dict[str, list[Video]] = defaultdict(list)
        for video in videos:
            self._shards[video.shard].append(video)
        self._contents = {
            shard: short_digest([(member.name, self._stamps[member.name]) for member in members])
            for shard, members in self._shards.items()
        }
        self._left = {
            shard: len(members) for shard, members in self._shards.items()
        }  # videos of which nothing is known
        self._classes = class_names(annotations)
        self._known: dict[str, tuple[Any, Packed]] = {}  # with the stamp, by name of the video
        self._written: dict[str, tuple[int, str]] = {}  # bytes and content of shards, by name
        self.packed: dict[str, Packed] = {}

    def begin(self, identity: Mapping[str, str]) -> None:
        """Read what was done before.

        Args:
            identity: everything that decides what is packed, by name.

        Raises:
            RecipeError: the folder was begun with another identity.
        """
        begun = False
        for record in self._journal.records():
            with suppress(KeyError, TypeError, ValueError):  # not of this program
                if "identity" in record:
                    begun = True
                    _check_same(self._output, record["identity"], identity)
                elif "shard" in record:
                    self._written[record["shard"]] = record["bytes"], record["content"]
                else:
                    self._known[record["video"]] = record["stamp"], Packed(**record["packed"])
        if not begun:
            self._journal.add({"identity": dict(identity)})

    def pack(self, encoding: Encoding, *, workers: int, progress: bool) -> None:
        """Encode what is not done yet."""
        unfinished = self._output / UNFINISHED
        unfinished.mkdir(exist_ok=True)
        for left in (
            *self._output.glob(".*.partial"),
            *(file for file in unfinished.glob(f"{_BEGUN}*") if not file.suffix),
        ):  # by a run that was killed
            left.unlink(missing_ok=True)
        with bar("packing", len(self._videos), progress=progress) as advance:
            for task, result in run_tasks(_pack_video, self._tasks(encoding, advance), workers=workers):
                packed = result
                if isinstance(result, Crash):
                    packed = Packed(error=f"{task.source}: reading it ends the process ({result.cause})")
                self._journal.add({"video": task.name, "stamp": self._stamps[task.name], "packed": asdict(packed)})
                self._keep(task.name, packed)
                advance(1)

    def _tasks(self, encoding: Encoding, advance: Callable[[float], object]) -> Iterator[_Task]:
        for name, video in self._videos.items():
            known = self._done(video)
            if known is None:
                yield _Task(name, video.source, self._place(video), self._output / UNFINISHED, encoding)
            else:
                self._keep(name, known)
                advance(1)

    def _done(self, video: Video) -> Packed | None:
        """What became of a video before; None: it is to be encoded."""
        stamp, size = self._stamps[video.name], 0
        if stamp is None:
            return Packed(error=f"{video.source}: no such file")
        before, packed = self._known.get(video.name, (None, Packed()))
        if before != stamp:
            return None
        with suppress(OSError):
            size = self._place(video).stat().st_size
        is_there = size == packed.bytes_after or (video.shard and self._is_written(video.shard))
        return packed if packed.error or is_there else None

    def _keep(self, name: str, packed: Packed) -> None:
        video = self._videos[name]
        self.packed[name] = packed
        if packed.error:
            self._place(video).unlink(missing_ok=True)  # of a video that could be packed before it was changed
        self._left[video.shard] -= 1
        if video.shard and not self._left[video.shard] and not self._is_written(video.shard):
            self._write_shard(video.shard)

    def _place(self, video: Video) -> Path:
        """Where the encoded file is, until it goes into a shard."""
        return self._output.joinpath(UNFINISHED if video.shard else "", video.name)

    # --- shards

    def _is_written(self, shard: str) -> bool:
        """Whether a shard holds what its videos are now."""
        size, content = self._written.get(shard, (0, ""))
        file = self._output / shard
        return content == self._contents[shard] and file.is_file() and file.stat().st_size == size

    def _write_shard(self, shard: str) -> None:
        target, partial = self._output / shard, self._output / UNFINISHED / shard
        members = [member for member in self._shards[shard] if not self.packed[member.name].error]
        files = {member.name.removesuffix(SUFFIX): self._place(member) for member in members}
        rows = [[self._annotations[row] for row in member.rows] for member in members]
        write_shard(
            partial, [(key, file, of) for (key, file), of in zip(files.items(), rows, strict=True)], self._classes
        )
        os.replace(partial, target)
        size, content = self._written[shard] = target.stat().st_size, self._contents[shard]
        self._journal.add({"shard": shard, "bytes": size, "content": content})
        for file in files.values():
            file.unlink()

    def finish(self) -> None:
        """Remove what is needed no more."""
        if "" not in self._shards:
            write_text(self._output / CLASSES, "".join(f"{label}\n" for label in self._classes))
        shutil.rmtree(self._output / UNFINISHED)


@contextmanager
def told(output: Path) -> Iterator[None]:
    """Errors of the disk that is written to, such as a full one, as an AnnotationError that says what to do."""
    try:
        yield
    except OSError as error:
        raise AnnotationError(
            f"{output}: {error.strerror or error}; all that was packed is kept: make room, or whatever else helps, and "
            "give the same command again"
        ) from None


def _check_same(output: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [name for name, value in now.items() if before.get(name) != value]
    if changed:
        then = ", ".join(f"{name.replace('_', ' ')} (then {before.get(name)}, now {now[name]})" for name in changed)
        raise RecipeError(
            f"{output}: was begun with other {then}; give those of then to go on, or another folder to begin anew"
        )


def _stamp(source: Path) -> list[int] | None:
    """Bytes and time of change, as the journal gives them back; None: the video is not there."""
    try:
        return list(file_stamp(source))
    except OSError:
        return None


def _pack_video(task: _Task) -> Packed:
    """Encode one video. Raises AnnotationError where the disk cannot be written to."""
    try:
        source = video_source(task.source)
        before = len(source) if isinstance(source, bytes) else file_stamp(source)[0]
    except (OSError, UniFormerV2Error) as error:
        return Packed(error=f"{task.source}: {error}")
    with told(task.unfinished.parent):
        handle, name = mkstemp(
            dir=task.unfinished, prefix=_BEGUN
        )  # a process of a run that was killed may be writing another
        os.close(handle)
        partial = Path(name)
        try:
            with closing(VideoReader(source, name=str(task.source), threads=1)) as reader:
                encode_video(reader, partial, task.encoding)
                facts = (len(reader), reader.height, reader.width)
                packed = Packed("", reader.damage, before, partial.stat().st_size, *facts)
            partial.chmod(0o666 & ~umask())
            task.target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, task.target)
            return packed
        except VideoError as error:
            return Packed(error=str(error))
        finally:
            partial.unlink(missing_ok=True)
