"""Media files opened, and the guard for what the decoder's library raises.

A file is opened as one of the formats listed here, which hold their media themselves: nothing else that a file names is
opened, be it on this machine or in a network. What would cost more than it is worth is refused before it is decoded.
"""

from __future__ import annotations

import io
import mmap
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av.stream import Disposition

from uniformerv2.errors import VideoError
from uniformerv2.video.limits import Limits, out_of_memory
from uniformerv2.video.png import PNG_CODECS, PNG_SIGNATURE, without_inflated
from uniformerv2.video.quicktime import check_boxes
from uniformerv2.video.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from av.container import InputContainer

# FFmpeg's names of the demuxers. Left out are those that open other files (hls, concat, image2, mlv, vobsub, imf),
# devices and networks, texts, raw samples, and sound, whose ID3 tags may unpack to gigabytes.
_CONTAINERS = """
mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi flv live_flv kux asf mpegts mpeg ogg mxf mxg gxf nut rm ivr wtv ty pva nsv swf
ivf dv lxf nuv r3d iv8 mpegvideo m4v h261 h263 h264 hevc evc vvc av1 obu avs avs2 avs3 cavsvideo vc1 vc1test dirac dnxhd
apv mjpeg mjpeg_2000 smjpeg mpjpeg yuv4mpegpipe cine frm
gif apng ico fits alias_pix brender_pix msp iff tiertexseq
4xm anm argo_brp argo_cvg bethsoftvid bfi bink bmv c93 cdg cdxl dfa dhav dsicin dxa ea ea_cdata film_cpk filmstrip flic
gdv hnm hxvs idcin ifv ipmovie ingenient ipu iss jv lmlm4 luodat lvf mgsts mm mods moflex msnwctcp mtv mv mvi nc paf pdv
pmp psxstr rl2 roq rpl sdns ser sga siff simbiosis_imx smk smush thp tmv txd usm vividas vivo vmd wc3movie wsvqa xmv yop
"""
_IMAGES = """
bmp cri dds dpx exr gem gif hdr j2k jpeg jpegls jpegxl jpegxs pam pbm pcx pfm pgm pgmyuv pgx phm photocd pictor png ppm
psd qdraw qoi sgi sunrast tiff vbn webp xbm xpm xwd
"""
FORMATS = (*_CONTAINERS.split(), "jpegxl_anim", *(f"{image}_pipe" for image in _IMAGES.split()))
_TEXTS = {  # how texts begin that FFmpeg would follow
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list of files (ffconcat)",
    b"v=0": "the description of a stream (SDP)",
    b"[playlist]": "a playlist",
}
_SELF_CONTAINED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
_NO_PNG = {"codec_whitelist": ",".join(sorted(av.codecs_available - PNG_CODECS))}  # where looking into a file decodes
# decoders that tell the size of pictures without making one
_SIZES_ALONE = "mjpeg,h264,hevc,webp,tiff,jpeg2000,mpeg1video,mpeg2video,mpeg4,vp8,vp9,libdav1d"
# earlier versions free memory that they do not have where they hand options to streams that come later
_HAS_STREAM_OPTIONS = tuple(map(int, av.__version__.split(".")[:2])) >= (17, 1)
_PACKED_SWF = b"CWS"  # SWF file format 19, chapter 2
_SWF_SIZES = 5  # bytes of version and size, which are not packed
_BEGINNING = 4096  # bytes of a file that are looked at
_ASF_ENCRYPTION = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")  # Content Encryption Object, ASF 3.14

# what PyAV and numpy raise for strange media, beside av.FFmpegError
FOREIGN = (ValueError, ArithmeticError, LookupError, TypeError, RuntimeError, AssertionError, BufferError)

NO_VIDEO = "cannot be read as a video"
NO_IMAGE = "cannot be read as an image"

_Read = Callable[[int, int], bytes]  # position, size -> bytes, fewer at the end


@contextmanager
def guarded(name: str, problem: str = NO_VIDEO) -> Iterator[None]:
    """Whatever the library raises becomes a VideoError of one line.

    Args:
        name: of the video.
        problem: what could not be done.
    """
    try:
        yield
    except VideoError:
        raise
    except MemoryError:  # FFmpeg's, too
        raise VideoError(f"{name}: {problem} ({out_of_memory()})") from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{name}: {problem} ({error.strerror or error})") from None
    except FOREIGN as error:
        reason = " ".join(str(error).split())[:200]
        raise VideoError(f"{name}: {problem} ({type(error).__name__}: {reason})") from None


def open_media(
    source: str | Path | bytes,
    name: str,
    *,
    limits: Limits,
    problem: str = NO_VIDEO,
    timeout: float | None = None,
) -> InputContainer:
    """Open a file, or the content of one.

    Args:
        name, problem: for messages, as of `guarded`.
        timeout: seconds that opening, and each read, may take; None: any.

    Raises:
        VideoError: it is no media file, encrypted, or over a limit.
    """
    with guarded(name, problem):
        source = _inspected(source, name, limits)
        is_png = isinstance(source, bytes) and source.startswith(PNG_SIGNATURE)

        def reopened(codecs: dict[str, str], nameless: bool = False, **decoding: str) -> InputContainer:
            # the prefix keeps a name with a colon from being taken for an address
            file: Any = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
            if nameless and not isinstance(source, bytes):
                file = _without_name(Path(source))
            options = decoding if _HAS_STREAM_OPTIONS else None
            return _open(file, name, timeout, container_options=_SELF_CONTAINED | codecs, options=options)

        codecs, most = {} if is_png else _NO_PNG, _most_pixels(limits)
        try:
            container = reopened(codecs, max_pixels=most)
        except av.ArgumentError:  # none of the formats, which may be for the name alone
            try:
                container = reopened(codecs, nameless=True, max_pixels=most)
            except (av.FFmpegError, ValueError):
                raise VideoError(f"{name}: no video in this file, or none of a format that is read") from None
        try:
            if not _limit_pixels(container, name, limits):
                with reopened({"codec_whitelist": _SIZES_ALONE}, skip_frame="all") as stated:
                    _limit_pixels(stated, name, limits)
            return container
        except VideoError:
            container.close()
            raise


def open_address(
    url: str, name: str, *, format: str | None, options: dict[str, str], timeout: float | None
) -> InputContainer:
    """Open whatever FFmpeg can reach: a network address, a camera.

    Args:
        url: as FFmpeg understands it.
        name: for messages.
        format: FFmpeg's name of a demuxer; None: by the content.
        options: of the demuxer.
        timeout: seconds that opening, and each read, may take; None: any.

    Raises:
        VideoError: it cannot be opened; its message has no password.
    """
    with guarded(name, "cannot be opened as a video"):
        return _open(url, name, timeout, format=format, container_options=options)


def _open(file: Any, name: str, timeout: float | None, **options: Any) -> InputContainer:
    try:
        return av.open(file, "r", metadata_errors="replace", timeout=timeout, **options)
    except av.ExitError:
        raise VideoError(f"{name}: no answer for {timeout:g} s") from None


def _without_name(path: Path) -> mmap.mmap:
    """Raises ValueError where the path is no file."""
    if not path.is_file():
        raise ValueError(path)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _inspected(source: str | Path | bytes, name: str, limits: Limits) -> str | Path | bytes:
    """What is opened: images are read whole. Refuses what no decoder may see."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        return source  # a pipe can be read only once
    with _reading(source, name, limits) as read:
        beginning = read(0, _BEGINNING)
        for start, what in _TEXTS.items():
            if beginning.startswith(start):
                raise VideoError(f"{name}: {what} is no media file; `uniformerv2 stream` reads live addresses")
        if _ASF_ENCRYPTION in beginning:
            raise VideoError(f"{name}: the video is encrypted")
        is_png = beginning.startswith(PNG_SIGNATURE)
        # by content: FFmpeg may take a name with a percent sign for a pattern
        if not isinstance(source, bytes) and (is_png or Path(source).suffix.lower() in IMAGE_SUFFIXES):
            source = read(0, Path(source).stat().st_size)
        if isinstance(source, bytes) and is_png:
            width, height = (int.from_bytes(beginning[start : start + 4], "big") for start in (16, 20))
            _check_pixels(width, height, name, limits)
            return without_inflated(source)
        if beginning.startswith(_PACKED_SWF):
            rest = len(_PACKED_SWF) + _SWF_SIZES
            return b"FWS" + beginning[len(_PACKED_SWF) : rest] + _unpacked(read(rest, 1 << 60), name, limits)
        check_boxes(read, name, limits)
    return source


def _unpacked(content: bytes, name: str, limits: Limits) -> bytes:
    """Of an SWF file, as far as it goes: FFmpeg would lose its end, and make a packet of any size from it."""
    unpacking, pieces = zlib.decompressobj(), []
    with suppress(zlib.error):
        while piece := unpacking.decompress(content, 1 << 20):
            content = unpacking.unconsumed_tail
            pieces.append(piece)
            if len(pieces) << 20 > limits.chunk_bytes:
                raise limits.exceeded("chunk_bytes", len(pieces) << 20, name)
    return b"".join(pieces)


@contextmanager
def _reading(source: str | Path | bytes, name: str, limits: Limits) -> Iterator[_Read]:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0) as file:

        def read(position: int, size: int) -> bytes:
            file.seek(position)
            if size > limits.chunk_bytes:
                size = min(size, file.seek(0, io.SEEK_END) - position)
                file.seek(position)
            if size > limits.chunk_bytes:
                raise limits.exceeded("chunk_bytes", size, name)
            return file.read(max(size, 0)) or b""

        yield read


def _limit_pixels(container: InputContainer, name: str, limits: Limits) -> bool:
    """Let no decoder make larger pictures; False where the file does not state their size, or did not get that far."""
    known = True
    for stream in container.streams.video:
        codec = stream.codec_context
        if codec is None or stream.disposition & Disposition.attached_pic:
            continue
        _check_pixels(codec.width, codec.height, name, limits)
        known = known and codec.width > 0
        codec.options = {"max_pixels": _most_pixels(limits)}
        if codec.name in PNG_CODECS and codec.extradata:
            codec.extradata = without_inflated(codec.extradata)
    return known


def _check_pixels(width: int, height: int, name: str, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise limits.exceeded("pixels", width * height, name)


def _most_pixels(limits: Limits) -> str:
    return str(2 * limits.pixels + (1 << 20))  # decoders count what they pad a picture with
