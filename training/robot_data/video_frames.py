"""Frames of a video at given times: decodes on or seeks, whichever is faster, and refuses a time without a frame.

One thread decodes: loaders have worker processes for the other cores.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from PIL import Image


MISSING_FRAME = "frame that a video lacks"
# Decoding on to a later frame takes the time of all frames between, seeking that of its own group of pictures and a
# little more: behind twice as many frames as a group has, seeking was faster, measured with groups of two frames.
SOON, GROUPS = 2.0, 2.0  # seconds until the length of a group is known, and groups


class VideoError(ValueError):
    """A video that cannot be decoded or has no frame at a time; names the video and the time."""


def video_seconds(video: str | BinaryIO) -> float | None:
    """How long the frames of a video take, by the number and rate in its header; `None` where it has none."""
    try:
        with av.open(video) as container:
            stream = container.streams.video[0]
            return float(stream.frames / stream.average_rate) if stream.frames and stream.average_rate else None
    except (FFmpegError, OSError, IndexError):
        return None  # reading its frames will say why


class VideoFrames:
    """Reads frames of several videos, one after the other; the last one stays open for the next request.

    Whether it decodes on or seeks depends on the distance of key frames, which is taken to be alike in all videos.

    Args:
        fps: frames per second. A frame matches a time less than a quarter of a frame away, so that no other one can.
            (lerobot allows 0.1 ms, which refuses recordings with a slightly uneven clock.)
        seconds: until when frames are needed, by name, where that is known. A video of another rate has to last as
            long.
    """

    def __init__(
        self, open_video: Callable[[str], str | BinaryIO], fps: float, seconds: Mapping[str, float] | None = None
    ):
        self._open_video = open_video
        self._fps = fps
        self._seconds = seconds or {}
        self._tolerance = 0.25 / fps
        self._soon = SOON
        self._group = 0.0  # seconds
        self._key: float | None = None  # the key frame of the group that is being decoded
        self._reformatter = VideoReformatter()  # kept: a frame's own one is set up for every frame
        self._name: str | None = None
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._frame: Any = None

    def picture(self, name: str, time: float) -> Image.Image:
        """The RGB picture of the frame at a time in seconds; raises `VideoError`."""
        try:
            frame = self._reformatter.reformat(self._find(name, time), format="rgb24", threads=1)
            return Image.fromarray(frame.to_ndarray())
        except (FFmpegError, OSError) as error:
            self.close()
            raise VideoError(f"got {name} that cannot be decoded ({error}); fetch it again") from error

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._name = self._container = self._frame = None

    def _find(self, name: str, time: float) -> Any:
        self._place(name, time)
        while self._frame is None or self._frame.time < time - self._tolerance:
            self._frame = next(self._frames, None)
            if self._frame is None:
                self.close()
                raise VideoError(f"got {name} that ends before {time:.3f} s, expected a frame there")
            self._note_group()
        if self._frame.time > time + self._tolerance:
            raise VideoError(
                f"got {name} without a frame at {time:.3f} s, expected one; the next is at {self._frame.time:.3f} s"
            )
        return self._frame

    def _check_clock(self, name: str, stream: Any) -> None:
        """Checks that the video's time begins at 0, and that it is not the same frames at another rate."""
        start = float((stream.start_time or 0) * stream.time_base)
        rate = float(stream.average_rate or self._fps)
        seconds, needed = stream.frames / rate, self._seconds.get(name, 0.0)
        if abs(start) > self._tolerance:
            found = f"whose first frame is at {start:.3f} s, expected it at 0 s, where its first row is; write the"
            found += " video again from its frames"
        elif abs(rate / self._fps - 1) > 0.05 and 0 < seconds < needed - 1.5 / self._fps:
            found = f"of {rate:g} frames a second and {seconds:.3f} s, expected {self._fps:g} (fps of the data set)"
            found += f" for {needed:.3f} s; write the video again at that rate, or correct fps"
        else:
            return
        self.close()
        raise VideoError(f"got {name} {found}: frames would stand beside actions of other steps")

    def _note_group(self) -> None:
        """Learns how long groups are, the longest one met, once a whole one was; every seek tells of another."""
        if self._key is not None:
            self._group = max(self._group, self._frame.time - self._key)
            if self._frame.key_frame or self._soon < SOON:
                self._soon = min(SOON, GROUPS * self._group + self._tolerance)
        if self._frame.key_frame:
            self._key = self._frame.time

    def _place(self, name: str, time: float) -> None:
        """Opens the video and makes the next frames those before `time`."""
        fresh = name != self._name
        if fresh:
            self.close()
            self._container, self._name = av.open(self._open_video(name)), name
            self._container.streams.video[0].codec_context.thread_count = 1
            self._check_clock(name, self._container.streams.video[0])
        stream = self._container.streams.video[0]
        now = None if self._frame is None else self._frame.time
        if fresh or now is None or not now - self._tolerance <= time <= now + self._soon:
            if not fresh or time > SOON:
                self._container.seek(int(max(time - self._tolerance, 0.0) / stream.time_base), stream=stream)
            self._frames = self._container.decode(stream)
            self._frame = self._key = None


class VideoPicture:
    """A frame that is decoded when it is needed: a row that nobody wants costs nothing.

    Rows whose frames are decoded in the order of the file take one pass over it; in another order every one is sought.
    """

    def __init__(self, frames: VideoFrames, name: str, time: float):
        self._place: tuple[VideoFrames, str, float] | None = (frames, name, time)
        self._decoded: Image.Image | VideoError | None = None

    def load(self) -> None:
        """Decodes it, once; what goes wrong is for `decode` to raise."""
        if self._place is None:
            return
        frames, name, time = self._place
        try:
            self._decoded = frames.picture(name, time)
        except VideoError as error:
            self._decoded = error
        self._place = None  # a video is closed with the last frame that is wanted of it

    def decode(self) -> Image.Image:
        """The RGB picture; raises `VideoError`."""
        self.load()
        if isinstance(self._decoded, VideoError):
            raise self._decoded
        assert self._decoded is not None
        return self._decoded

    def take(self) -> Image.Image:
        """The RGB picture, which is then forgotten here: an episode refers to this as long as it is being read."""
        picture, self._decoded = self.decode(), VideoError("got a frame that was taken already")
        return picture
