"""Videos as files and as frames: what is read, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import InputError, MissingDependencyError
from edgeprune.runtime.videos import VideoLike, open_video
from edgeprune.video_program import FrameSampling
from tests.videos import clip, write_video

FRAMES = clip(12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mkv", FRAMES, 6)


def test_a_file_has_a_rate_and_its_frames(path: Path) -> None:
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        with open_video(source, 2.0) as video:
            assert (video.size, video.total, video.rate, video.sampled) == ((40, 24), 12, 6.0, False)
            indices = video.indices(FrameSampling(frames=4), None, None)
            np.testing.assert_array_equal(list(video.frames(indices)), FRAMES[::3])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.webm", "clip.ts", "clip.gif"])
def test_formats_that_lose_something(name: str, tmp_path: Path) -> None:
    codec = {"webm": "libvpx", "ts": "mpeg2video", "gif": "gif"}.get(name.rpartition(".")[2], "mpeg4")
    with open_video(write_video(tmp_path / name, FRAMES, 6, codec), 2.0) as video:
        assert (video.size, video.total) == ((40, 24), 12)
        found = np.array(list(video.frames(np.arange(12))))
    assert np.abs(found.astype(int) - FRAMES).mean() < 12


def test_frames_are_a_choice_already() -> None:
    for source in (FRAMES, list(FRAMES)):
        with open_video(source, 3.0) as video:
            assert (video.size, video.total, video.rate, video.sampled) == ((40, 24), 12, 3.0, True)
            all_of_them = video.indices(FrameSampling(frames=4), None, None)
            np.testing.assert_array_equal(list(video.frames(all_of_them)), FRAMES)
    with open_video(FRAMES, 3.0) as video:
        assert video.indices(FrameSampling(frames=4), 3, None).tolist() == [0, 4, 8]


def test_the_last_frame_stands_for_those_that_lack(path: Path) -> None:
    with open_video(path, 2.0) as video:
        found = list(video.frames(np.array([0, 11, 40, 41])))
    np.testing.assert_array_equal(found, FRAMES[[0, 11, 11, 11]])


def test_a_video_is_turned_as_its_file_asks(tmp_path: Path) -> None:
    # A phone held upright writes the matrix of a quarter turn into the track's header.
    content = write_video(tmp_path / "clip.mp4", FRAMES, 6, "mpeg4").read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = b"".join(
        n.to_bytes(4, "big", signed=True) for n in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    at = content.index(identity, content.index(b"tkhd"))
    content = content[:at] + turned + content[at + len(identity) :]
    with open_video(content, 2.0) as video:
        assert video.size == (24, 40)
        first = next(video.frames(np.array([0])))
    # A quarter turn clockwise brings the left edge to the top.
    wanted = np.rot90(FRAMES[0], -1)
    assert np.abs(first.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.mp4", "there is no video missing.mp4: check the path"),
        ("https://example.org/a.mp4", "the video https://example.org/a.mp4 is not a local file"),
        (b"no video at all", "the bytes handed in is no video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "the bytes handed in is no video"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "the bytes handed in is no video"),
        ([], "a video has no frames: expected at least one"),
        (7, "a video of type int is not supported: expected a path, bytes"),
    ],
)
def test_what_is_no_video_is_named(source: VideoLike, message: str) -> None:
    with pytest.raises(InputError, match=message), open_video(source, 2.0):
        pass


def test_a_file_that_is_cut_off_shows_what_is_left(path: Path) -> None:
    content = path.read_bytes()
    with open_video(content[: len(content) * 2 // 3], 2.0) as video:
        found = list(video.frames(np.arange(12)))
    assert len(found) == 12
    np.testing.assert_array_equal(found[0], FRAMES[0])


def test_frames_of_several_sizes_are_named() -> None:
    frames = [FRAMES[0], FRAMES[0][:10]]
    with open_video(frames, 2.0) as video, pytest.raises(InputError, match="of several sizes, 40 x 24 and"):
        list(video.frames(np.arange(2)))


def test_without_pyav_it_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"edgeprune\[video\]"), open_video(path, 2.0):
        pass
    with open_video(FRAMES, 2.0) as video:
        assert video.total == 12
