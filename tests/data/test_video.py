"""A video in every form: read as frames with their rate, or refused with what to do."""

import base64
import io
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from tests.data.loading import asked, frames_of, one
from tests.families import build
from transformers_qaig.data import video as rules
from transformers_qaig.data.messages import to_conversation
from transformers_qaig.data.video import MAX_FRAMES, open_video

FILE = b"\0\0\0\x20ftypmp42"  # what a decoder is tried with


def animation(frames: list[Image.Image], milliseconds: Any = 500) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=milliseconds, lossless=True)
    return buffer.getvalue()


def gif(size: int, frames: int) -> bytes:
    """An animation whose frames change one pixel of a square."""
    palette = b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\x04\x01\0\0\0" + b"," + b"\0\0\0\0\1\0\1\0\0" + b"\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HH", size, size) + palette + frame * frames + b";"


def fake_decoders(monkeypatch: pytest.MonkeyPatch, **decoders: Any) -> None:
    """Decoders that are installed: name → function of the path and of what chooses frames."""

    def load_video(path: str, backend: str, sample_indices_fn: Any) -> tuple[Any, None]:
        return decoders[backend](path, sample_indices_fn), None

    monkeypatch.setattr(rules, "_DECODERS", dict.fromkeys(decoders, lambda: True))
    monkeypatch.setattr(rules, "load_video", load_video)


def info(frames: int, fps: float, width: int = 60, height: int = 40) -> SimpleNamespace:
    return SimpleNamespace(total_num_frames=frames, fps=fps, width=width, height=height)


def test_every_form_has_the_same_frames(array: np.ndarray, tmp_path: Path) -> None:
    data = animation(frames_of(array))
    (tmp_path / "a.webp").write_bytes(data)
    for index, frame in enumerate(frames_of(array)):
        frame.save(tmp_path / f"{index}.png")
    forms: list[Any] = [
        array,
        torch.from_numpy(array).permute(0, 3, 1, 2),
        array.astype(np.float32) / 255,
        list(array),
        frames_of(array),
        [str(tmp_path / f"{index}.png") for index in range(6)],
        tmp_path / "a.webp",
        f"file://{tmp_path}/a.webp",
        "data:image/webp;base64," + base64.b64encode(data).decode(),
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.webp")},
    ]
    for form in forms:
        clip = open_video(form)
        assert clip.fps == 2, form
        assert np.array_equal(np.stack([np.asarray(frame) for frame in clip]), array), form


def test_frames_of_floats_are_scaled_together() -> None:
    dark, bright = np.zeros((2, 8, 8, 3), np.float32), np.full((2, 8, 8, 3), 255, np.float32)
    dark += 1  # of 255: alone it would be taken for white
    for form in (np.concatenate([dark, bright]), [*dark, *bright]):
        assert np.asarray(open_video(form)[0]).max() == 1


def test_parts_columns_and_markers_say_where_a_video_is(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(animation(frames_of(array)))
    path, text = str(tmp_path / "a.webp"), {"type": "text", "text": "what ?"}
    records: list[Any] = [
        [{"role": "user", "content": [{"type": "video", "path": path}, text]}],
        [{"role": "user", "content": [{"type": "video", "url": path}, text]}],
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": path}}, text]}],
        {"messages": [{"role": "user", "content": [{"type": "video"}, text]}], "videos": [path]},
        {"messages": [{"role": "user", "content": "<video>what ?"}], "videos": [path]},
        {"video": path, "question": "what ?"},
        {"video": frames_of(array), "question": "what ?"},
        {"videos": [frames_of(array)], "question": "what ?"},
    ]
    for record in records:
        video, question = to_conversation(record)[0]["content"]
        assert (video["type"], len(video["video"]), question["text"]) == ("video", 6, "what ?"), record
    assert to_conversation({"video": path, "caption": "a cat"})[0]["content"][1]["text"] == "Describe this video."
    both = {"messages": [{"role": "user", "content": "<image>or<video>?"}], "images": [Image.new("RGB", (4, 4))]}
    assert [part["type"] for part in to_conversation({**both, "videos": [path]})[0]["content"]] == [
        *("image", "text", "video", "text")
    ]
    with pytest.raises(ValueError, match="1 video placeholders and the sample has 2 videos"):
        to_conversation({"messages": [{"role": "user", "content": [{"type": "video"}, text]}], "videos": [path, path]})


def test_a_file_is_read_at_two_frames_a_second_and_no_more_than_the_most(array: np.ndarray) -> None:
    frames = frames_of(np.repeat(array, 10, axis=0))
    for index, frame in enumerate(frames):
        frame.putpixel((0, 0), (index, 0, 0))
    for milliseconds, fps, indices, rate in (
        (100, None, range(0, 60, 5), 2),  # 6 seconds at 10 frames a second
        (100, 1, range(0, 60, 10), 1),
        (5000, None, [k * 60 // MAX_FRAMES for k in range(MAX_FRAMES)], MAX_FRAMES / 300),
        ([1000] * 2 + [1] * 58, None, [0, 0, 1, 1], 4 / 2.058),  # a frame is read as long as it is shown
    ):
        clip = open_video(animation(frames, milliseconds), fps=fps)
        shown = [frame.getpixel((0, 0))[0] for frame in clip]
        assert shown == list(indices)
        assert clip.fps == pytest.approx(rate, rel=1e-3)
    lone = open_video(array[:1])
    assert len(lone) == 2
    assert lone[0] is lone[1]


def test_an_animation_that_is_too_long_is_refused_before_the_rest_is_decoded(
    array: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, seek = [], WebPImageFile.seek
    monkeypatch.setattr(WebPImageFile, "seek", lambda image, frame: (decoded.append(frame), seek(image, frame))[1])
    with pytest.raises(ValueError, match="4000 seconds long, the limit is 3600"):
        open_video(animation(frames_of(array), 2_000_000))
    assert max(decoded) == 1


def test_decoders_are_told_which_frames_and_tried_in_turn(
    array: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def broken(path: str, choose: Any) -> Any:
        raise RuntimeError("no libavcodec")

    def working(path: str, choose: Any) -> Any:
        seen.extend([Path(path).read_bytes(), choose(info(120, 30.0))])
        return np.repeat(array, 20, axis=0)[seen[1]]

    fake_decoders(monkeypatch, torchcodec=broken, pyav=working)
    (tmp_path / "a.mp4").write_bytes(FILE)
    clip = open_video("a.mp4", tmp_path)
    assert seen == [FILE, [0, 17, 34, 51, 68, 85, 102, 119]]
    assert (len(clip), clip.fps) == (8, 2)


def test_a_decoder_object_of_torchcodec(array: np.ndarray) -> None:
    decoder = SimpleNamespace(
        metadata=SimpleNamespace(num_frames=6, average_fps=2.0),
        get_frames_at=lambda indices: SimpleNamespace(data=torch.from_numpy(array[indices]).permute(0, 3, 1, 2)),
    )
    assert np.array_equal(np.asarray(open_video(decoder)[5]), array[5])


def test_without_a_decoder_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_DECODERS", {"pyav": lambda: False})
    with pytest.raises(ValueError, match=r"needs a video decoder, and none is installed: run `pip install av`"):
        open_video(FILE)


@pytest.mark.parametrize(
    ("frames", "found", "message"),
    [
        (120 * 3601, info(30 * 3601, 30.0), "is 3601 seconds long, the limit is 3600"),
        (6, info(6, 2.0, width=100_000, height=100_000), "10000000000 pixels, more than PIL allows"),
        (6, info(0, 2.0), "cannot be decoded .*does not say how many frames it has"),
        (2, info(6, 2.0), "cannot be decoded .*it ends after 2 of 6 frames"),
        (0, info(6, 2.0), "cannot be decoded"),
    ],
)
def test_limits_and_damage_of_a_file(
    array: np.ndarray, monkeypatch: pytest.MonkeyPatch, frames: int, found: Any, message: str
) -> None:
    fake_decoders(monkeypatch, pyav=lambda path, choose: array[: len(choose(found)) and frames])
    with pytest.raises(ValueError, match=message):
        open_video(FILE)


def test_files_of_another_kind_or_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"is {kind}, not a file"):
            open_video(path)
    monkeypatch.setattr(rules, "MAX_VIDEO_BYTES", 1 << 20)
    (tmp_path / "large.mp4").write_bytes(bytes(2 << 20))
    for source in (tmp_path / "large.mp4", bytes(2 << 20)):
        with pytest.raises(ValueError, match="larger than 1 MiB, the limit"):
            open_video(source)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "a video has no frames"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "must be of one size"),
        (["nowhere.png"], "cannot be opened"),
        ("nowhere.mp4", "cannot be opened"),
        ("a\0b.mp4", "the file a\0b.mp4 cannot be opened"),
        (np.zeros((8, 8, 3), np.uint8), r"a video array must be \[T, H, W, C\]"),
        (np.full((2, 8, 8, 3), np.nan), "NaN or infinity"),
        ({"uri": "a.mp4"}, "needs 'bytes' or 'path'"),
        (3, "a video must be a path"),
        (animation([Image.new("RGB", (8, 8))]), "is a picture, not a video"),
        (b"", "is empty"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", "is text, such as a playlist"),
        (animation(frames_of(np.random.default_rng(0).integers(0, 256, (6, 40, 60, 3), np.uint8)))[:-900], "decoded"),
        (gif(20, 3)[:-20], "cannot be decoded"),
        (gif(9000, 251), "has 251 pictures of 9000x9000 pixels, together more than the limit"),
    ],
)
def test_a_broken_video_is_refused_and_names_the_sample(video: Any, message: str) -> None:
    processor = build("internvl")[1]
    with pytest.raises(ValueError, match=f"(?s)calibration sample 0 is not usable: .*{message}"):
        one([asked(video)], processor)


def test_a_rate_may_be_a_number_of_numpy(array: np.ndarray) -> None:
    assert type(open_video(array, fps=np.float32(3)).fps) is float  # type: ignore[arg-type]


def test_a_rate_that_is_none_is_refused(array: np.ndarray) -> None:
    for fps in (0, -1, float("nan"), "2", [2]):
        with pytest.raises(ValueError, match="'fps' of a video must be a positive number"):
            to_conversation(asked(array, fps=fps))


def test_a_video_file_is_decoded(array: np.ndarray, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in np.linspace(0, 255, 60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = open_video(tmp_path / "a.mp4")
    assert (len(clip), clip.fps, clip[0].size) == (12, 2, (64, 48))
    assert [np.asarray(frame).mean() for frame in clip] == pytest.approx(np.linspace(0, 255, 12), abs=6)
    damaged = (tmp_path / "a.mp4").read_bytes()[:2000]
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_video(damaged)
    assert "av" in sys.modules
