"""Media files of every container and codec that FFmpeg writes here, drawn by a seed, and a plain decode of them."""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "0")  # or the encoder writes to stderr

RATE = 25  # frames/s, which every codec can state
HARDWARE = re.compile(r"_(amf|mf|nvenc|qsv|v4l2m2m|vaapi|videotoolbox)$")  # encoders that need a device
NO_FILE = 1  # AVFMT_NOFILE
# formats that write no media, several files, or what only a network reads
NO_CONTAINERS = frozenset(
    {"crc", "dash", "data", "ffmetadata", "fifo", "framecrc", "framehash", "framemd5", "hash", "hds", "hls", "image2"}
    | {"md5", "mkvtimestamp_v2", "null", "rtp", "rtp_mpegts", "rtsp", "sap", "segment", "smoothstreaming"}
    | {"stream_segment,ssegment", "streamhash", "tee", "uncodedframecrc", "webm_chunk", "webm_dash_manifest", "whip"}
)
# containers that do not state which codecs they take, and codecs that are tried in them
UNSTATED = ("mpegts", "mpeg", "vob", "ogv", "mxf", "gxf", "dirac", "webp")
MAIN = ("libx264", "libx265", "libsvtav1", "libvpx", "libvpx-vp9", "mpeg1video", "mpeg2video", "mpeg4")
MAIN += ("mjpeg", "ffv1", "jpeg2000", "prores", "vc2", "libwebp", "libwebp_anim")
X265 = "x265-params=log-level=none:pools=none:frame-threads=1"
CANNOT = (av.FFmpegError, ValueError, OverflowError, NotImplementedError, LookupError, TypeError, AttributeError)
"""What PyAV raises where a codec cannot be written with these options, or not into this container."""


def pictures(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Distinct frames with texture, motion and a corner that counts: uint8 RGB (height, width, 3)."""
    texture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8) // 2
    for i in range(count):
        image = np.roll(texture, 3 * i, axis=1)
        image[: max(height // 3, 1), : max(width // 3, 1)] = (4 * i % 256, 255 - 3 * i % 256, 128)
        yield image


def with_alpha(image: np.ndarray) -> np.ndarray:
    """RGBA of RGB, less opaque from left to right."""
    alpha = np.linspace(255, 0, image.shape[1], dtype=np.uint8)
    return np.dstack([image, np.broadcast_to(alpha, image.shape[:2])])


def shown(frame: av.VideoFrame, **size: int) -> np.ndarray:
    """uint8 RGB (height, width, 3) of a frame, over white where it is transparent."""
    colours = frame.to_ndarray(format="rgb24", **size)
    if frame.format.name != "pal8" and not any(component.is_alpha for component in frame.format.components):
        return colours
    alpha = frame.to_ndarray(format="gbrap", **size)[..., 3:]  # as "rgba" its last columns may be left unwritten
    opacity = alpha / 255 if alpha.any() else 1.0
    return np.rint(colours * opacity + 255 * (1 - opacity)).astype(np.uint8)


@dataclass(frozen=True)
class Drawing:
    """How a file is drawn."""

    container: str
    codec: str
    frames: int = 10
    width: int = 64
    height: int = 48
    pixels: str = ""  # format; empty: the first that the encoder takes
    group: int = 6  # frames from one key frame to the next
    b_frames: int = 0  # in a row
    irregular: bool = False  # times of presentation
    quarter_turns: int = 0  # to the left, until it stands upright
    sound: bool = False
    fragments: bool = False
    options: str = ""  # of the encoder, as "name=value,name=value"

    def __str__(self) -> str:
        extras = [name for name in ("irregular", "sound", "fragments") if getattr(self, name)]
        extras += [f"{self.quarter_turns} turns"] * bool(self.quarter_turns)
        what = f"{self.codec} in {self.container}, {self.frames} frames {self.width}x{self.height} {self.pixels}"
        return ", ".join([what, f"group of {self.group}", f"{self.b_frames} B-frames", *extras, self.options])


def draw(drawing: Drawing) -> bytes:
    """The content of the file. Raises one of `CANNOT`."""
    memory = io.BytesIO()
    muxer = {"movflags": "frag_keyframe+empty_moov"} if drawing.fragments else {}
    with av.open(memory, "w", format=drawing.container, options=muxer) as output:
        output.metadata["title"] = "A video that was drawn"
        options = {"strict": "experimental", "threads": "1"}
        more = drawing.options or (X265 if drawing.codec == "libx265" else "")
        options |= dict(option.split("=", 1) for option in more.split(",") if option)
        stream = output.add_stream(drawing.codec, rate=RATE, options=options)
        stream.width, stream.height = drawing.width, drawing.height
        stream.pix_fmt = drawing.pixels or pixel_formats(drawing.codec)[0]
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = drawing.group, drawing.b_frames
        if drawing.irregular:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = output.add_stream(output.default_audio_codec, rate=48000) if drawing.sound else None
        times = np.cumsum(np.random.default_rng(drawing.frames).integers(1, 90, drawing.frames)).tolist()
        for image, time in zip(pictures(drawing.frames, drawing.height, drawing.width), times, strict=True):
            frame = av.VideoFrame.from_ndarray(with_alpha(image), format="rgba")
            if drawing.irregular:
                frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        if sound is not None:
            for frame in silence(drawing.frames * 48000 // RATE):
                output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
        output.mux(stream.encode(None))
    return turned(memory.getvalue(), drawing.quarter_turns) if drawing.quarter_turns else memory.getvalue()


def turned(content: bytes, quarter_turns: int, *, mirrored: bool = False) -> bytes:
    """An MP4 or MOV whose first track is to be shown turned to the left, and then mirrored. Raises ValueError."""
    a, b, c, d = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)][quarter_turns % 4]  # x' = a·x + c·y
    if mirrored:
        a, c = -a, -c
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    start = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2; PyAV 17 cannot write it
    start += 12 * content[start - 40]  # version 1 has longer times
    return content[:start] + matrix + content[start + len(matrix) :]


def silence(samples: int) -> Iterator[av.AudioFrame]:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples * 2), np.int16), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = 48000, 0
    yield frame


@cache
def pixel_formats(codec: str) -> list[str]:
    """That the encoder takes and FFmpeg converts to."""
    names = [form.name for form in av.Codec(codec, "w").video_formats or ()] or ["yuv420p"]
    return [name for name in names if name != "pal8" and av.VideoFormat(name).components] or ["yuv420p"]


@cache
def candidates() -> list[tuple[str, str]]:
    """Containers and encoders that go together, as FFmpeg says."""
    encoders = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        if codec.type == "video" and codec.name == name and not HARDWARE.search(name):
            encoders.append((name, codec.canonical_name))
    found = []
    for container in sorted(av.formats_available - NO_CONTAINERS):
        try:
            if av.ContainerFormat(container, "w").flags & NO_FILE:
                continue
            with av.open(io.BytesIO(), "w", format=container) as output:
                known = output.supported_codecs
        except CANNOT:
            continue
        if container in UNSTATED:
            known = known | set(MAIN)
        found += [(container, name) for name, canonical in encoders if {name, canonical} & known]
    return found


@dataclass
class Decoded:
    """What a plain decode on one thread finds in a file."""

    images: list[np.ndarray]  # upright uint8 RGB (height, width, 3), in the size of the first
    times: list[float | None]  # in seconds, by frame
    errors: int  # packets that cannot be decoded, and frames that the decoder calls damaged
    stated_rate: float  # frames/s; 0: not stated


def decode(source: Path | bytes, *, quarter_turns: int = 0) -> Decoded:
    """Decode a file from its start, stepping over packets that cannot be decoded, to where it cannot be read on.

    Args:
        quarter_turns: to the left, that make its frames upright.
    """
    images, times, errors = [], [], 0
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file, metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.thread_type, stream.thread_count = "NONE", 1
        broken: list[Exception] = []
        for packet in _until_damage(container.demux(stream), broken):
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError:
                errors += 1
                continue
            for frame in frames:
                errors += frame.is_corrupt
                size = {"width": images[0].shape[1], "height": images[0].shape[0]} if images else {}
                images.append(shown(frame, **size))
                times.append(None if frame.pts is None else float(frame.pts * stream.time_base))
        errors += len(broken)
        stated = stream.average_rate or stream.guessed_rate
    return Decoded([np.rot90(image, quarter_turns) for image in images], times, errors, float(stated or 0))


def _until_damage(packets: Iterator[av.Packet], broken: list[Exception]) -> Iterator[av.Packet | None]:
    """Those with content, and None, to flush; `broken` gets the error that ends them."""
    try:
        yield from (packet for packet in packets if packet.size)  # an empty one would end the stream
    except av.FFmpegError as error:
        broken.append(error)
    yield None


@cache
def pairs() -> list[tuple[str, str, int, int]]:
    """Container, encoder, width and height of the files that can be written and read again."""
    found = []
    for container, codec in candidates():
        for width, height in ((64, 48), (128, 96)):
            try:
                decoded = decode(draw(Drawing(container, codec, 2, width, height)))
                if decoded.images and not decoded.errors:
                    found.append((container, codec, width, height))
                    break
            except CANNOT:
                pass
    return found


STRUCTURES = {  # options of encoders that change how pictures refer to each other, and how they are cut into units
    "libx264": [
        *("x264-params=open-gop=1:b-pyramid=normal:b-adapt=0:scenecut=0", "x264-params=interlaced=1"),
        *("x264-params=slices=3", "x264-params=intra-refresh=1", "x264-params=b-pyramid=strict:ref=5:cqm=jvt"),
    ],
    "libx265": [
        f"{X265}:{more}"
        for more in ("open-gop=0", "b-pyramid=0:slices=2", "repeat-headers=1:aud=1", "temporal-layers=2")
    ],
    "mpeg2video": ["flags=+ilme+ildct", "intra_vlc=1", "seq_disp_ext=1"],
    "mpeg4": ["flags=+mv4+qpel", "data_partitioning=1", "flags=+ilme+ildct"],
    "libvpx": ["auto-alt-ref=1,lag-in-frames=10,arnr-maxframes=3", "error-resilient=1"],
    "libvpx-vp9": ["auto-alt-ref=1,lag-in-frames=10", "frame-parallel=1", "lossless=1"],
    "libsvtav1": ["svtav1-params=pred-struct=1", "svtav1-params=hierarchical-levels=3"],
    "prores_ks": ["profile=4444", "flags=+ilme+ildct"],
}
TURNED = ("mov", "mp4", "3gp", "3g2", "ipod", "f4v", "ismv")  # have a display matrix, and may be cut into fragments


def drawing(container: str, codec: str, width: int, height: int, dice: random.Random) -> tuple[Drawing, bytes]:
    """A file of the pair with properties by chance, as far as it can have them. Raises one of `CANNOT`."""
    plain = Drawing(container, codec, dice.randint(10, 40), width, height)
    content = draw(plain)
    if len(content) > 100_000:
        plain = replace(plain, frames=10)
        content = draw(plain)
    if (decoded := decode(content)).errors:  # some muxers write files that are damaged
        raise ValueError(f"{plain}: {decoded.errors} errors")
    wanted: list[dict[str, Any]] = [
        {"group": dice.choice([1, 4, 12, 60])},
        {"b_frames": dice.choice([0, 0, 1, 3])},
        {"pixels": dice.choice(pixel_formats(codec))},
        # SVT-AV1 hangs on some low pictures
        {"width": 4 * dice.randint(8, 32), "height": 4 * dice.randint(16 if codec == "libsvtav1" else 6, 24)},
        {"irregular": True},
        {"sound": True},
    ]
    if container in TURNED:
        wanted += [{"fragments": True}, {"quarter_turns": dice.randint(1, 3)}]
    if codec in STRUCTURES:
        wanted += [{"options": dice.choice(STRUCTURES[codec])}]
    chosen = wanted[:4] + [fields for fields in wanted[4:] if dice.random() < 0.3]
    for fields in [dict(chain.from_iterable(map(dict.items, chosen))), *chosen]:
        tried = replace(plain, **fields)
        try:
            drawn = draw(tried)
            found = decode(drawn)
            if len(found.images) == len(decoded.images) and not found.errors:
                plain, content = tried, drawn
        except CANNOT:
            continue
        if fields not in chosen:  # all at once
            break
    return plain, content


def ordered(found: Sequence[tuple[str, str, int, int]], dice: random.Random) -> list[tuple[str, str, int, int]]:
    """Pairs by chance, so that every container comes before one of them comes again."""
    of_container: dict[str, list[tuple[str, str, int, int]]] = {}
    for pair in dice.sample(found, len(found)):
        of_container.setdefault(pair[0], []).append(pair)
    return [pair for turn in zip_longest(*of_container.values()) for pair in turn if pair]


YEARS = 30 * 365 * 86400  # seconds


def _back(times: list[int], dice: random.Random) -> list[int | None]:
    cut, step = dice.randrange(1, len(times)), dice.choice([1, times[-1] // 2, times[-1] + 1])
    return [*times[:cut], *(time - step for time in times[cut:])]


def _one_back(times: list[int], dice: random.Random) -> list[int | None]:
    at = dice.randrange(1, len(times))
    return [*times[:at], times[at - 1] - 1, *times[at + 1 :]]


def _doubled(times: list[int], dice: random.Random) -> list[int | None]:
    at = dice.randrange(1, len(times))
    return [*times[:at], times[at - 1], *times[at + 1 :]]


def _missing(times: list[int], dice: random.Random) -> list[int | None]:
    none = set(dice.sample(range(len(times)), dice.randint(1, len(times))))
    return [None if at in none else time for at, time in enumerate(times)]


def _far(times: list[int], dice: random.Random) -> list[int | None]:
    cut, step = dice.randrange(1, len(times)), dice.choice([90_000, YEARS * 1000, 1 << 40])
    return [*times[:cut], *(time + step for time in times[cut:])]


def _swapped(times: list[int], dice: random.Random) -> list[int | None]:
    one, other = sorted(dice.sample(range(len(times)), 2))
    return [*times[:one], times[other], *times[one + 1 : other], times[one], *times[other + 1 :]]


def _shuffled(times: list[int], dice: random.Random) -> list[int | None]:
    return dice.sample(times, len(times))


def _constant(times: list[int], dice: random.Random) -> list[int | None]:
    return [times[0]] * len(times)


TIMES: Mapping[str, Callable[[list[int], random.Random], list[int | None]]] = {
    "back": _back,
    "one back": _one_back,
    "doubled": _doubled,
    "missing": _missing,
    "far": _far,
    "swapped": _swapped,
    "shuffled": _shuffled,
    "constant": _constant,
}
"""Times of presentation, in ticks and in decode order, made hostile."""


def retimed(content: bytes, container: str, kind: str, dice: random.Random) -> bytes:
    """The packets of a drawn file with other times, in the same container. Raises one of `CANNOT`.

    Args:
        kind: of `TIMES`, or "appended": a recording behind another.
    """
    if kind == "appended":
        return content + content[dice.choice([0, 0, dice.randrange(len(content))]) :]
    if container == "nut":
        raise ValueError("FFmpeg's muxer of NUT writes beyond its memory where times jump")
    memory = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(memory, "w", format=container) as output:
        template = source.streams.best("video")
        stream = output.add_stream_from_template(template)
        packets = [packet for packet in source.demux(template) if packet.size]
        times = [at if packet.pts is None else packet.pts for at, packet in enumerate(packets)]
        changed = TIMES[kind](times, dice)
        # muxers want decode times that rise, and none that lies behind its time of presentation
        latest = max(time for time in [*changed, 0] if time is not None) + 1
        for packet, time in reversed([*zip(packets, changed, strict=True)]):
            latest = min(latest - 1, latest if time is None else time)
            packet.stream, packet.pts, packet.dts = stream, time, latest
        for packet in packets:
            output.mux(packet)
    return memory.getvalue()


def with_damaged_packets(content: bytes, dice: random.Random) -> bytes:
    """A file with damage in one to three packets of its video alone, on which its decoder stumbles."""
    with av.open(io.BytesIO(content)) as container:
        whole = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in dice.sample(whole, min(dice.randint(1, 3), len(whole))):
        start, size = content.find(packet), len(packet)
        place = min(int(size * dice.choice([0.02, 0.1, 0.3, 0.5, 0.8, 0.9, 1.0])), size - 1)
        bit, rest = packet[place] ^ 1 << dice.randrange(8), size - place
        new = dice.choice([bytes([bit]), bytes(rest), dice.randbytes(rest)])
        if start >= 0:
            content = content[: start + place] + new + content[start + place + len(new) :]
    return content
