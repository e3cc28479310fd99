"""Media files opened, and the guard for what the decoder's library raises.

A file is opened as one of the formats listed here, which hold their media themselves: nothing else that a file names is
opened, be it on this machine or in a network.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from uniformerv2.errors import VideoError
from uniformerv2.video.limits import Limits, out_of_memory
from uniformerv2.video.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from av.container import InputContainer

# FFmpeg's names of the demuxers; left out are those that open other files (hls, concat, image2, mlv, vobsub, imf),
# devices and networks, texts and raw samples
FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "live_flv", "kux", "asf", "mpegts", "mpeg", "ogg"),
    *(
        "mxf",
        "mxg",
        "gxf",
        "nut",
        "rm",
        "ivr",
        "wtv",
        "ty",
        "pva",
        "nsv",
        "swf",
        "ivf",
        "dv",
        "lxf",
        "nuv",
        "r3d",
        "iv8",
    ),
    *(
        "mpegvideo",
        "m4v",
        "h261",
        "h263",
        "h264",
        "hevc",
        "evc",
        "vvc",
        "av1",
        "obu",
        "avs",
        "avs2",
        "avs3",
        "cavsvideo",
    ),
    *(
        "vc1",
        "vc1test",
        "dirac",
        "dnxhd",
        "apv",
        "mjpeg",
        "mjpeg_2000",
        "smjpeg",
        "mpjpeg",
        "yuv4mpegpipe",
        "cine",
        "frm",
    ),
    *("gif", "gif_pipe", "apng", "png_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_pipe", "jpegxl_anim", "jpegxs_pipe"),
    *("j2k_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "ppm_pipe", "pgm_pipe", "pgmyuv_pipe", "pbm_pipe", "pam_pipe"),
    *(
        "pcx_pipe",
        "pfm_pipe",
        "pgx_pipe",
        "phm_pipe",
        "photocd_pipe",
        "pictor_pipe",
        "psd_pipe",
        "qdraw_pipe",
        "qoi_pipe",
    ),
    *("sgi_pipe", "sunrast_pipe", "cri_pipe", "dds_pipe", "dpx_pipe", "exr_pipe", "gem_pipe", "hdr_pipe", "vbn_pipe"),
    *("xbm_pipe", "xpm_pipe", "xwd_pipe", "ico", "fits", "alias_pix", "brender_pix", "msp", "iff", "tiertexseq"),
    *("4xm", "anm", "argo_brp", "argo_cvg", "bethsoftvid", "bfi", "bink", "bmv", "c93", "cdg", "cdxl", "dfa", "dhav"),
    *(
        "dsicin",
        "dxa",
        "ea",
        "ea_cdata",
        "film_cpk",
        "filmstrip",
        "flic",
        "gdv",
        "hnm",
        "hxvs",
        "idcin",
        "ifv",
        "ipmovie",
    ),
    *(
        "ingenient",
        "ipu",
        "iss",
        "jv",
        "lmlm4",
        "luodat",
        "lvf",
        "mgsts",
        "mm",
        "mods",
        "moflex",
        "msnwctcp",
        "mtv",
        "mv",
    ),
    *("mvi", "nc", "paf", "pdv", "pmp", "psxstr", "rl2", "roq", "rpl", "sdns", "ser", "sga", "siff", "simbiosis_imx"),
    *("smk", "smush", "thp", "tmv", "txd", "usm", "vividas", "vivo", "vmd", "wc3movie", "wsvqa", "xmv", "yop"),
    # sound, of which is said that it has no video
    *("aac", "ac3", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "mp3", "tta", "w64", "wav", "wv"),
)
_TEXTS = {  # how texts begin that FFmpeg would follow
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list of files (ffconcat)",
    b"v=0": "the description of a stream (SDP)",
    b"[playlist]": "a playlist",
}
_SELF_CONTAINED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
_BEGINNING = 16  # bytes of a file that are looked at

# what PyAV and numpy raise for strange media, beside av.FFmpegError
FOREIGN = (ValueError, ArithmeticError, LookupError, TypeError, RuntimeError, AssertionError, BufferError)

NO_VIDEO = "cannot be read as a video"
NO_IMAGE = "cannot be read as an image"


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
        VideoError: it is no media file, or over a limit.
    """
    beginning = _beginning(source, name)
    for start, what in _TEXTS.items():
        if beginning.startswith(start):
            raise VideoError(f"{name}: {what} is no media file; `uniformerv2 stream` reads live addresses")
    if not isinstance(source, bytes) and beginning and Path(source).suffix.lower() in IMAGE_SUFFIXES:
        source = _content(Path(source), name, limits)  # FFmpeg may take a name with a percent sign for a pattern
    # the prefix keeps a name with a colon from being taken for an address
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    with guarded(name, problem):
        try:
            return _open(file, name, timeout, container_options=_SELF_CONTAINED)
        except av.ArgumentError:
            raise VideoError(f"{name}: no video in this file, or none of a format that is read") from None


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
    # options go to the container alone: PyAV 17.0.0 frees memory that it does not have where it hands them to streams
    try:
        return av.open(file, "r", metadata_errors="replace", timeout=timeout, **options)
    except av.ExitError:
        raise VideoError(f"{name}: no answer for {timeout:g} s") from None


def _beginning(source: str | Path | bytes, name: str) -> bytes:
    """The first bytes; none of what is not a plain file, such as a pipe, where they could be read only once."""
    if isinstance(source, bytes):
        return source[:_BEGINNING]
    with guarded(name):
        if not Path(source).is_file():
            return b""
        with open(source, "rb") as file:
            return file.read(_BEGINNING)


def _content(path: Path, name: str, limits: Limits) -> bytes:
    with guarded(name):
        size = path.stat().st_size
        if size > limits.chunk_bytes:
            raise limits.exceeded("chunk_bytes", size, name)
        return path.read_bytes()
