"""Opens one calibration image, whatever form the user has it in."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .fetch import MAX_IMAGE_BYTES, fetch
from .pixels import from_array, to_rgb, unreadable


def open_image(source: Any, base_dir: Path | None = None) -> Image.Image:
    """Opens an image and returns it as RGB pixels in memory.

    Args:
        source: a `PIL.Image.Image`; a path; an `http(s):`, `file:` or `data:` URL; encoded `bytes`; a dict with `bytes`
            or `path` (an undecoded image column of `datasets`); a numpy array or torch tensor, see
            [`pixels.from_array`]. Of an animation the first frame is taken.
        base_dir: the folder that relative paths start from (default: the working directory).

    Returns:
        `PIL.Image.Image` in mode `RGB`: EXIF rotation applied, transparency laid over white, 16 bits scaled to 8.

    Raises:
        ValueError: the image cannot be opened; the message says why and what to do.
        TypeError: `source` is none of the forms above.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source, f"the image {name[:200]}" if (name := getattr(source, "filename", "")) else "the image")
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return _decode(source["bytes"], "the encoded image")
        if source.get("path") is not None:
            return open_image(source["path"], base_dir)
        raise ValueError(f"an image given as a dict needs 'bytes' or 'path', this one has {sorted(map(str, source))}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "the encoded image")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return from_array(source)
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        what = "the data: URL" if name[:5].lower() == "data:" else f"the image {name[:200]}"
        return _decode(fetch(name, base_dir), what)
    raise TypeError(
        f"an image must be a PIL image, a path, a URL, a data: URL, bytes, an array or a tensor, "
        f"not {type(source).__name__}"
    )


def shrink(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """Scales `image` down, keeping its aspect ratio, so that width x height <= `max_pixels`."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    return image.resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.LANCZOS)


def _decode(data: bytes, what: str) -> Image.Image:
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"{what} is larger than {MAX_IMAGE_BYTES >> 20} MiB, the limit: give a smaller one")
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # a damaged header makes PIL's plugins raise every kind
        raise unreadable(what, error) from error
    return to_rgb(image, what)
