"""Opens one calibration video, whatever form the user has it in, as frames with a known rate."""

import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from transformers.utils import is_av_available, is_cv2_available, is_decord_available, is_torchcodec_available
from transformers.video_utils import load_video

from ..utils.temporary import temporary_folder
from .fetch import fetch
from .images import open_image
from .pixels import frames_from_array, to_array, to_rgb, unreadable

MAX_VIDEO_BYTES = 1 << 30
MAX_VIDEO_SECONDS = 3600.0
MAX_ANIMATION_PIXELS = 20_000_000_000
"""Of all pictures of an animation, each of which must be decoded: ten minutes of 1920x1080 at 16 frames a second."""
MAX_FRAMES = 32
"""What is read of a file; a longer video is sampled evenly."""
FPS = 2.0
"""Frames a second: what is read of a file, and the rate of frames without a known rate."""
FRAME_MILLISECONDS = 100  # of an animation that does not say, as browsers show it
_ENOUGH = 0.9  # of the chosen frames; with fewer a file is damaged
_HEAD = 1024  # bytes, in which every container of videos has a zero
_STARTS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")  # of GIF, PNG and JPEG; WebP's is longer
_DECODERS = {
    "torchcodec": is_torchcodec_available,
    "pyav": is_av_available,
    "decord": is_decord_available,
    "opencv": is_cv2_available,
}


class Clip(list[Image.Image]):
    """Frames of a video: RGB, of one size, two or more.

    Attributes:
        fps: frames a second.
    """

    def __init__(self, frames: Iterable[Image.Image], fps: float):
        super().__init__(frames)
        self.fps = fps

    def thinned(self, count: int) -> "Clip":
        """Returns `count` of the frames, evenly spread."""
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        return Clip([self[index] for index in chosen], self.fps * count / len(self))

    def metadata(self) -> dict[str, Any]:
        """Returns what Transformers' video processors ask for, so that they take every frame at its time."""
        return {
            "total_num_frames": len(self),
            "fps": self.fps,
            "duration": len(self) / self.fps,
            "frames_indices": list(range(len(self))),
            "width": self[0].width,
            "height": self[0].height,
        }


class VideoInfo(Protocol):
    """What a decoder says of a video."""

    total_num_frames: int
    fps: float | None
    width: int | None
    height: int | None


def open_video(source: Any, base_dir: Path | None = None, fps: float | None = None) -> Clip:
    """Opens a video and returns its frames in memory.

    Args:
        source: a path or an `http(s):`, `file:` or `data:` URL of a video file, or of an animated GIF or WebP; encoded
            `bytes`; a dict with `bytes` or `path` (an undecoded column of `datasets`); a `VideoDecoder` of torchcodec
            (a decoded one); a list of frames, each in a form that [`images.open_image`] takes; an array or tensor
            `[T, H, W, C]` or `[T, C, H, W]`.
        base_dir: the folder that relative paths start from (default: the working directory).
        fps: frames a second: the rate of given frames, or the rate to read a file with. By default `FPS`.

    Returns:
        Given frames all, of a file at most `MAX_FRAMES`; a lone one twice, because video models pair frames.

    Raises:
        ValueError: the video cannot be opened or exceeds a limit; the message says why and what to do.
        TypeError: `source` is none of the forms above.
    """
    if fps is not None and not (isinstance(fps, Real) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"the 'fps' of a video must be a positive number, not {fps!r:.40}")
    fps = None if fps is None else float(fps)
    if isinstance(source, Clip):
        return source
    if isinstance(source, Mapping):
        if source.get("bytes") is None and source.get("path") is None:
            raise ValueError(
                f"a video given as a dict needs 'bytes' or 'path', this one has {sorted(map(str, source))}"
            )
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _clip(frames_from_array(source), fps or FPS)
    if isinstance(source, (list, tuple)):
        return _clip(_frames_of(source, base_dir), fps or FPS)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "the encoded video", fps)
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        what = "the data: URL" if name[:5].lower() == "data:" else f"the video {name[:200]}"
        return _decode(fetch(name, base_dir, MAX_VIDEO_BYTES), what, fps)
    if hasattr(source, "get_frames_at") and hasattr(source, "metadata"):
        return _from_decoder(source, fps)
    raise TypeError(
        f"a video must be a path, a URL, bytes, a list of frames, an array [T, H, W, C] or a VideoDecoder, "
        f"not {type(source).__name__}"
    )


def _frames_of(source: Sequence[Any], base_dir: Path | None) -> list[Image.Image]:
    """Opens given frames. Arrays are scaled together: one of them may be dark."""
    if source and all(isinstance(frame, (np.ndarray, torch.Tensor)) for frame in source):
        arrays = [array[..., None] if array.ndim == 2 else array for array in map(to_array, source)]
        if len({array.shape for array in arrays}) == 1:
            return frames_from_array(np.stack(arrays))
    return [open_image(frame, base_dir) for frame in source]


def _clip(frames: Sequence[Image.Image], fps: float) -> Clip:
    if not frames:
        raise ValueError("a video has no frames: remove it")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(
            f"the frames of a video must be of one size, these are {sizes[0]} and {sizes[-1]}: scale them, or give "
            "them as images"
        )
    return Clip(frames if len(frames) > 1 else [*frames, *frames], fps)


def _decode(data: bytes, what: str, fps: float | None) -> Clip:
    if len(data) > MAX_VIDEO_BYTES:
        raise ValueError(f"{what} is larger than {MAX_VIDEO_BYTES >> 20} MiB, the limit: cut it, or give its frames")
    if not data:
        raise ValueError(f"{what} is empty: remove it")
    animation = _animation(data, what, fps)
    if animation is not None:
        return animation
    if b"\0" not in data[:_HEAD]:  # a playlist would make a decoder open what it names
        raise ValueError(f"{what} is text, such as a playlist or a web page: give the video file itself")
    with tempfile.TemporaryDirectory(prefix="qaig-video-", dir=temporary_folder()) as folder:
        path = Path(folder) / "video"
        path.write_bytes(data)
        return _decode_file(path, what, fps)


def _animation(data: bytes, what: str, fps: float | None) -> Clip | None:
    """Decodes an animated GIF, PNG or WebP with PIL; None: it is none of these."""
    if not data.startswith(_STARTS) and data[8:12] != b"WEBP":
        return None
    try:
        image = Image.open(io.BytesIO(data))
        total = getattr(image, "n_frames", 1)  # PIL goes through them all
    except Exception as error:  # a damaged file makes PIL's plugins raise every kind
        raise unreadable(what, error) from error
    if total == 1:
        raise ValueError(f"{what} is a picture, not a video: give it as a part of type 'image'")
    if total * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise _LimitError(
            f"{what} has {total} pictures of {image.width}x{image.height} pixels, together more than the limit of "
            f"{MAX_ANIMATION_PIXELS}: scale it down, or give some of its frames"
        )
    try:
        milliseconds: list[float] = []
        length = 0.0
        for index in range(total):
            image.seek(index)
            image.load()
            milliseconds.append(image.info.get("duration") or FRAME_MILLISECONDS)
            length += milliseconds[-1] / 1000
            _check_seconds(length, what)  # before the rest is decoded
        ends = np.cumsum(milliseconds) / 1000
        count = min(max(round(ends[-1] * (fps or FPS)), 2), MAX_FRAMES)
        frames = []
        for index in np.searchsorted(ends, np.arange(count) * ends[-1] / count, side="right"):
            image.seek(int(index))
            frames.append(to_rgb(image.copy(), what))
    except ValueError:  # ours; it says what to do
        raise
    except Exception as error:  # PIL decodes lazily, and its plugins raise every kind
        raise unreadable(what, error) from error
    return _clip(frames, count / float(ends[-1]))


def _decode_file(path: Path, what: str, fps: float | None) -> Clip:
    """Decodes a file with the first of the installed decoders that can."""
    installed = [name for name, is_available in _DECODERS.items() if is_available()]
    if not installed:
        raise ValueError(
            f"{what} needs a video decoder, and none is installed: run `pip install av` (or torchcodec), or give the "
            "video as a list of frames"
        )
    failures: list[str] = []
    for backend in installed:
        chosen: list[int] = []
        rate = FPS

        def choose(metadata: VideoInfo, **_: Any) -> list[int]:
            nonlocal chosen, rate
            _check_pixels(metadata, what)
            chosen, rate = _chosen(metadata.total_num_frames, float(metadata.fps or 0), fps, what)
            return chosen

        try:
            source = cast(Any, str(path))  # load_video's annotation lacks paths
            decoded, _ = load_video(source, backend=backend, sample_indices_fn=choose)
            frames = frames_from_array(decoded)
            if len(frames) < _ENOUGH * len(chosen):
                raise ValueError(f"it ends after {len(frames)} of {len(chosen)} frames")
        except _LimitError:
            raise
        except Exception as error:  # decoders raise every kind
            failures.append(f"{backend}: {type(error).__name__}: {error}"[:200])
            continue
        return _clip(frames, rate)
    raise ValueError(f"{what} cannot be decoded ({'; '.join(failures)}): replace or remove it")


def _from_decoder(decoder: Any, fps: float | None) -> Clip:
    metadata = decoder.metadata
    chosen, rate = _chosen(metadata.num_frames or 0, float(metadata.average_fps or 0), fps, "the video")
    try:
        frames = decoder.get_frames_at(indices=chosen).data
    except Exception as error:  # the library raises every kind
        raise ValueError(
            f"the video cannot be decoded ({type(error).__name__}: {error}): replace or remove it"
        ) from error
    return _clip(frames_from_array(frames), rate)


class _LimitError(ValueError):
    """A video exceeds a limit, whatever decodes it."""


def _check_pixels(metadata: VideoInfo, what: str) -> None:
    pixels = (metadata.width or 0) * (metadata.height or 0)
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise _LimitError(f"a frame of {what} has {pixels} pixels, more than PIL allows for an image: scale it down")


def _check_seconds(seconds: float, what: str) -> None:
    if seconds > MAX_VIDEO_SECONDS:
        raise _LimitError(
            f"{what} is {seconds:.0f} seconds long, the limit is {MAX_VIDEO_SECONDS:.0f}: cut it, or give some of its "
            "frames"
        )


def _chosen(total: int, native_fps: float, fps: float | None, what: str) -> tuple[list[int], float]:
    """Returns which of a file's frames are read, and their rate.

    Raises:
        ValueError: the number of frames is not known, or the video is too long.
    """
    if total < 1:
        raise ValueError("it does not say how many frames it has: convert it to .mp4, or give its frames")
    if native_fps <= 0:
        count, native_fps = total, fps or FPS
    else:
        count = max(round(total * (fps or FPS) / native_fps), 2)
    _check_seconds(total / native_fps, what)
    count = min(count, total, MAX_FRAMES)
    return np.linspace(0, total - 1, count).round().astype(int).tolist(), native_fps * count / total
