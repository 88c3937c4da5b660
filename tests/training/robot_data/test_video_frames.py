"""Frames by time: in order, after a seek, over several videos, and where there are none."""

import av
import numpy as np
import pytest
from robot_data_sets import write_video

from gen_vla.training.robot_data.video_frames import VideoError, VideoFrames, VideoPicture


GREYS = np.broadcast_to((4 * np.arange(60))[:, None, None, None], (60, 64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=["libx264", "libsvtav1"])
def video(request, tmp_path_factory):
    """60 frames at 5 per second; the grey of frame n is 4 n."""
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    write_video(path, GREYS, request.param)
    return path


def frame_numbers(frames, name, times):
    return [round(np.asarray(frames.picture(str(name), time)).mean() / 4) for time in times]


def test_pictures_equal_those_of_the_plain_way(video):
    with av.open(str(video)) as container:
        plain = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    frames = VideoFrames(str, 5)
    assert len(plain) == 60
    for number, expected in enumerate(plain):
        assert round(expected.mean() / 4) == number
        assert np.array_equal(np.asarray(frames.picture(str(video), number / 5)), expected)


def test_any_part_by_seeking_and_by_decoding_on(video):
    frames = VideoFrames(str, 5)
    for numbers in ([40, 41, 42], [43, 44], [3, 4], [0], [59], [12, 20, 50], [12]):
        assert frame_numbers(frames, video, [number / 5 for number in numbers]) == numbers


def test_a_time_slightly_off_is_its_frame_and_one_between_is_none(video):
    assert frame_numbers(VideoFrames(str, 5), video, [0.001, 0.19, 0.43]) == [0, 1, 2]
    with pytest.raises(VideoError, match=r"without a frame at 0.300 s"):
        frame_numbers(VideoFrames(str, 5), video, [0.3])


def test_the_end_of_a_video(video):
    frames = VideoFrames(str, 5)
    with pytest.raises(VideoError, match=r"ends before 12.000 s"):
        frame_numbers(frames, video, [11.8, 12.0])
    assert frame_numbers(frames, video, [1.0]) == [5]


def test_a_file_that_is_no_video(tmp_path, video):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 500)
    frames = VideoFrames(str, 5)
    with pytest.raises(VideoError, match=r"broken.mp4 that cannot be decoded"):
        frame_numbers(frames, broken, [0.0])
    with pytest.raises(VideoError, match=r"none.mp4 that cannot be decoded"):
        frame_numbers(frames, tmp_path / "none.mp4", [0.0])
    assert frame_numbers(frames, video, [0.2]) == [1]


def test_a_picture_is_decoded_once_and_when_it_is_needed(video):
    opened = []
    frames = VideoFrames(lambda name: opened.append(name) or name, 5)
    late, early = VideoPicture(frames, str(video), 8.0), VideoPicture(frames, str(video), 0.4)
    assert not opened
    assert [round(np.asarray(picture.decode()).mean() / 4) for picture in (late, early)] == [40, 2]
    assert late.decode() is late.decode()
    late.load()
    assert opened == [str(video)]


def test_a_picture_that_is_not_there_says_so_every_time(video):
    missing = VideoPicture(VideoFrames(str, 5), str(video), 12.0)
    missing.load()
    for _ in range(2):
        with pytest.raises(VideoError, match=r"ends before 12.000 s"):
            missing.decode()


@pytest.fixture
def decoding(monkeypatch):
    """A reader, and the frames it decodes."""
    frames, decoded = VideoFrames(str, 5), []
    note = frames._note_group
    monkeypatch.setattr(frames, "_note_group", lambda: (decoded.append(frames._frame), note())[1])
    return frames, decoded


def test_only_groups_of_pictures_that_are_wanted_are_decoded(tmp_path, decoding):
    """A key frame every two frames, as lerobot writes them: of ten frames three at most are decoded, not all."""
    frames, decoded = decoding
    write_video(tmp_path / "video.mp4", GREYS)
    assert frame_numbers(frames, tmp_path / "video.mp4", np.arange(0, 60, 10) / 5) == list(range(0, 60, 10))
    assert len(decoded) <= 11 + 4 * 3  # the first time all up to the second picture, to see what is cheaper
    assert frame_numbers(frames, tmp_path / "video.mp4", np.arange(60) / 5) == list(range(60))


def test_a_long_group_behind_a_short_one_is_decoded_on(tmp_path, decoding):
    """Where groups turn out longer than the first, seeking for every picture would decode them again and again."""
    frames, decoded = decoding
    write_video(tmp_path / "short.mp4", GREYS[:10])
    write_video(tmp_path / "long.mp4", GREYS, group=60)
    frame_numbers(frames, tmp_path / "short.mp4", [0.0, 1.0])
    decoded.clear()
    assert frame_numbers(frames, tmp_path / "long.mp4", np.arange(0, 60, 6) / 5) == list(range(0, 60, 6))
    assert len(decoded) < 90
