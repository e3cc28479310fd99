from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from helpers import noise, write_video
from uniformerv2.errors import VideoError
from uniformerv2.video.live import Address, LiveFrame, LiveFrames, Pace, live_frames, read
from uniformerv2.video.reader import VideoReader


def image(value: int = 0, side: int = 4) -> torch.Tensor:
    return torch.full((3, side, side), value, dtype=torch.uint8)


class Clock:
    """Seconds that pass only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def everything(
    source: str | Path, clock: Clock | None = None, *, rate: float | None = None, timeout: float = 5.0
) -> tuple[LiveFrames, list[LiveFrame]]:
    """All that a source gives, read in this thread."""
    clock = clock or Clock()
    address = Address.of(source)
    frames = LiveFrames(name=address.name, queue_size=1000, clock=clock)
    read(address, frames, rate, timeout, pace=Pace(clock, clock.wait), stopped=lambda: False)
    frames.end()
    return frames, list(iter(frames.take, None))


class TestQueue:
    def test_the_oldest_goes_when_there_is_no_room(self) -> None:
        frames = LiveFrames(queue_size=2)
        for number in range(5):
            frames.push(image(number), time=10 + number / 4)
        frames.end()
        taken = list(iter(frames.take, None))
        assert [frame.number for frame in taken] == [3, 4]
        assert [int(frame.image[0, 0, 0]) for frame in taken] == [3, 4]
        assert [frame.time for frame in taken] == [0.75, 1.0]  # since the first, which is gone
        assert frames.dropped == 3

    def test_time_is_the_clock_s_where_none_is_given(self) -> None:
        clock = Clock()
        frames = LiveFrames(clock=clock)
        frames.push(image())
        clock.now = 3.0
        frames.push(image())
        assert [frames.take().time, frames.take().time] == [0.0, 3.0]  # type: ignore[union-attr]

    def test_no_frame_in_time(self) -> None:
        with pytest.raises(VideoError, match=r"^kitchen: no frame for 0.01 s$"):
            LiveFrames(name="kitchen").take(timeout_seconds=0.01)

    def test_a_waiting_consumer_is_woken(self) -> None:
        there, back = LiveFrames(), LiveFrames()

        def answer() -> None:
            for frame in iter(partial(there.take, timeout_seconds=60), None):
                back.push(frame.image)
            back.end()

        thread = threading.Thread(target=answer)
        thread.start()
        for value in range(50):  # each side waits for the other
            there.push(image(value))
            assert int(back.take(timeout_seconds=60).image[0, 0, 0]) == value  # type: ignore[union-attr]
        there.end()
        assert back.take(timeout_seconds=60) is None
        thread.join()

    def test_an_error_comes_after_the_frames_before_it(self) -> None:
        frames = LiveFrames()
        frames.push(image())
        frames.end(error=VideoError("cable cut"))
        assert frames.take() is not None
        with pytest.raises(VideoError, match="cable cut"):
            frames.take()

    @pytest.mark.parametrize("wrong", [image().float(), image()[0], image().repeat(2, 1, 1)])
    def test_what_is_no_frame_is_refused(self, wrong: torch.Tensor) -> None:
        with pytest.raises(ValueError, match="uint8"):
            LiveFrames().push(wrong)


class TestPace:
    def test_frames_are_due_at_their_times(self) -> None:
        clock = Clock()
        pace = Pace(clock, clock.wait)
        clock.now = 100.0
        for time in (5.0, 5.5, 6.5):
            pace.hold(time)
        assert clock.waits == [0.5, 1.0]

    def test_who_is_late_is_not_held_until_caught_up(self) -> None:
        clock = Clock()
        pace = Pace(clock, clock.wait)
        pace.hold(0.0)
        clock.now = 2.5
        for time in (1.0, 2.0, 3.0):
            pace.hold(time)
        assert clock.waits == [0.5]

    @pytest.mark.parametrize("jump", [-3.0, 5000.0])
    def test_a_jump_of_the_times_is_no_pause(self, jump: float) -> None:
        clock = Clock()
        pace = Pace(clock, clock.wait)
        for time in (5.0, 6.0, 6.0 + jump, 7.0 + jump):
            pace.hold(time)
        assert clock.waits == [1.0, 1.0]


class TestFiles:
    def test_a_file_plays_as_fast_as_it_was_made(self, video: Path) -> None:
        clock = Clock()
        frames, taken = everything(video, clock)
        assert [frame.time for frame in taken] == pytest.approx([number / 10 for number in range(12)])
        assert [frame.arrival for frame in taken] == pytest.approx([number / 10 for number in range(12)])
        assert (frames.dropped, frames.damaged, frames.ending) == (0, 0, "")
        with VideoReader(video) as reader:
            assert torch.equal(torch.stack([frame.image for frame in taken]), reader.frames_at(range(12)))

    def test_frames_that_the_decoder_holds_back_to_the_end_have_times_too(self, tmp_path: Path) -> None:
        _, taken = everything(write_video(tmp_path / "film.mp4", noise(12), codec="libx264"))  # with B-frames
        assert [frame.time for frame in taken] == pytest.approx([number / 10 for number in range(12)])

    def test_the_first_frame_of_each_slot_is_taken(self, video: Path) -> None:
        _, taken = everything(video, rate=4)
        assert [frame.time for frame in taken] == pytest.approx([0, 0.3, 0.5, 0.8, 1.0])

    def test_a_phone_s_video_is_turned_upright(self, shared: Path) -> None:
        video = shared / "data" / "videos" / "decord" / "video_90.mov"
        _, taken = everything(video)
        with VideoReader(video) as reader:
            assert torch.equal(torch.stack([frame.image for frame in taken]), reader.frames_at(range(len(reader))))

    def test_a_damaged_file_goes_on(self, shared: Path) -> None:
        frames, taken = everything(shared / "data" / "videos" / "decord" / "corrupted.mp4")
        assert (len(taken), frames.damaged) == (49, 1)  # of fifty packets

    def test_what_cannot_be_opened(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video")
        for name in ("absent.mp4", "text.mp4"):
            with pytest.raises(VideoError, match=name):
                everything(tmp_path / name)


def test_sources_are_told_apart() -> None:
    assert Address.of("film.mp4") == Address("film.mp4", "file:film.mp4")
    assert Address.of(Path("a:b.mp4")).url == "file:a:b.mp4"
    rtsp = Address.of("rtsp://user:secret@cam.local:554/live?x=1")
    assert rtsp.name == "rtsp://cam.local:554/live?x=1"
    assert "secret" in rtsp.url
    assert rtsp.options == {"rtsp_transport": "tcp"}
    assert Address.of("http://host/film.mp4").options == {}


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ("v4l2", "/dev/video1")), ("darwin", ("avfoundation", "1")), ("win32", ("dshow", "video=1"))],
)
def test_cameras_have_a_name_on_each_system(
    platform: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    for source in ("camera:1", 1):
        address = Address.of(source)
        assert (address.format, address.url, address.name) == (*expected, "camera 1")
    monkeypatch.setattr("sys.platform", "toaster")
    with pytest.raises(VideoError, match="toaster"):
        Address.of("camera")


# over HTTP: the multipart JPEG that cameras send, and a file


def encoded(codec: str, container: str) -> bytes:
    """Twelve frames."""
    return write_video(io.BytesIO(), noise(12), codec=codec, container=container).getvalue()


def jpeg(side: int) -> bytes:
    frame = write_video(io.BytesIO(), noise(1, side, side), codec="mjpeg", container="mjpeg", pixels="yuvj420p")
    return part(frame.getvalue())


def part(content: bytes) -> bytes:
    header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
    return header.encode() + content + b"\r\n"


SMALL, LARGE, GARBAGE = jpeg(48), jpeg(64), part(np.random.default_rng(0).bytes(300))
FILES = {
    "/film": encoded("mpeg4", "avi"),
    "/piece.ts": encoded("mpeg2video", "mpegts"),
    "/live.m3u8": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.2,\npiece.ts\n",
}
STREAMS = {
    "/even": SMALL * 5,
    "/resized": SMALL * 3 + LARGE * 3,
    "/damaged": SMALL * 3 + GARBAGE * 4 + SMALL * 3,
    "/garbage": SMALL * 3 + GARBAGE * 600,
    "/stalling": SMALL * 3,
}


class Handler(BaseHTTPRequestHandler):
    released: threading.Event

    def do_GET(self) -> None:
        if self.path in FILES:
            self.send_response(200)
            self.send_header("Content-Length", str(len(FILES[self.path])))
            self.end_headers()
            self.wfile.write(FILES[self.path])
            return
        if self.path not in (*STREAMS, "/silent"):
            self.send_error(404)
            return
        if self.path == "/silent":
            self.released.wait()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        self.wfile.write(STREAMS.get(self.path, b""))
        if self.path == "/stalling":
            self.released.wait()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an HTTP server on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Released", (Handler,), {"released": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have gone
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        handler.released.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def unhurried_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout concerns reads alone, so that a busy machine cannot be too slow to open a source.

    FFmpeg looks at half a second of it: by default at five, which it would wait for where a live list has fewer.
    """
    open_source, probing = av.open, {"analyzeduration": "500000"}
    monkeypatch.setattr(
        *(av, "open"),
        lambda *given, timeout, container_options, **more: open_source(
            *given, timeout=(60, timeout), container_options={**container_options, **probing}, **more
        ),
    )


class TestAddresses:
    def test_a_live_stream_is_not_held_back(self, server: str) -> None:
        clock = Clock()
        frames, taken = everything(f"{server}/even", clock)
        assert [tuple(frame.image.shape) for frame in taken] == [(3, 48, 48)] * 5
        assert clock.waits == []
        assert "reading stopped" in frames.ending

    def test_a_file_behind_an_address_plays_at_its_own_pace(self, server: str) -> None:
        clock = Clock()
        _, taken = everything(f"{server}/film", clock)
        assert [frame.arrival for frame in taken] == pytest.approx([number / 10 for number in range(12)])

    @pytest.mark.usefixtures("unhurried_opening")
    def test_what_is_live_in_pieces_is_shown_at_its_pace(self, server: str) -> None:
        clock = Clock()
        with pytest.raises(VideoError, match=r"no frame for 0\.2 s"):  # the list has no end, and no second piece comes
            everything(f"{server}/live.m3u8", clock, timeout=0.2)
        assert sum(clock.waits) == pytest.approx(1.0, abs=0.11)  # the decoder holds the last frame back

    def test_frames_of_another_size_midway(self, server: str) -> None:
        _, taken = everything(f"{server}/resized")
        assert [frame.image.shape[1] for frame in taken] == [48] * 3 + [64] * 3

    def test_what_cannot_be_decoded_is_counted(self, server: str) -> None:
        frames, taken = everything(f"{server}/damaged")
        assert (len(taken), frames.damaged) == (6, 4)

    def test_nothing_but_garbage_is_an_error(self, server: str) -> None:
        with pytest.raises(VideoError, match=r"/garbage: 500 packets in a row cannot be decoded"):
            everything(f"{server}/garbage")

    def test_an_address_that_is_not_there(self, server: str) -> None:
        with pytest.raises(VideoError, match=r"/absent: cannot be opened as a video .*404"):
            everything(f"{server}/absent")

    def test_a_server_that_does_not_answer(self, server: str) -> None:
        with pytest.raises(VideoError, match=r"/silent: no answer for 0.2 s"):
            everything(f"{server}/silent", timeout=0.2)

    @pytest.mark.usefixtures("unhurried_opening")
    def test_a_server_that_falls_silent(self, server: str) -> None:
        with pytest.raises(VideoError, match=r"/stalling: no frame for 0.2 s"):
            everything(f"{server}/stalling", timeout=0.2)

    @pytest.mark.parametrize(("path", "timeout"), [("even", 60), ("stalling", 0.2), ("silent", 0.2), ("absent", 60)])
    def test_the_thread_that_reads_ends(
        self, server: str, path: str, timeout: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started, start = [], threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread) or start(thread))
        ending = nullcontext() if path == "even" else pytest.raises(VideoError)
        with live_frames(f"{server}/{path}", timeout_seconds=timeout) as frames, ending:
            list(iter(partial(frames.take, timeout_seconds=60), None))
        [reader] = [thread for thread in started if thread.name == f"{server}/{path}"]
        assert not reader.is_alive()

    def test_a_reader_that_is_not_needed_any_more_ends(self, tmp_path: Path) -> None:
        with live_frames(write_video(tmp_path / "slow.mp4", noise(2), times=[0, 9000])) as frames:
            assert frames.take(timeout_seconds=60) is not None
            reader = [thread for thread in threading.enumerate() if thread.name == frames.name]
        assert not reader[0].is_alive()
