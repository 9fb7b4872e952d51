"""Opening one calibration image, whatever form the user has it in."""

import base64
import binascii
import io
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

DOWNLOAD_TIMEOUT_S = 30.0


def open_image(source: Any, base_dir: Path | None = None) -> Image.Image:
    """
    Opens an image and returns it as RGB pixels in memory.

    Args:
        source: a `PIL.Image.Image`; a path; an `http(s)://` URL; a `data:` URL; encoded `bytes`; a dict with `bytes`
            or `path` (an undecoded image column of `datasets`); a numpy array or torch tensor shaped `[H, W]`,
            `[H, W, C]` or `[C, H, W]` with C in (1, 3, 4), integers in 0..255 or floats in 0..1.
        base_dir: the folder that relative paths start from (default: the working directory).

    Returns:
        `PIL.Image.Image` in mode `RGB`: EXIF rotation applied, transparency laid over white.

    Raises:
        ValueError: the image cannot be opened; the message says why and what to do.
        TypeError: `source` is none of the forms above.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return _decode(source["bytes"], "the image bytes")
        if source.get("path") is not None:
            return open_image(source["path"], base_dir)
        raise ValueError(f"an image given as a dict needs 'bytes' or 'path', this one has {sorted(source)}")
    if isinstance(source, (bytes, bytearray)):
        return _decode(bytes(source), "the image bytes")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _decode(_download(source), source)
    if isinstance(source, str) and source.startswith("data:"):
        return _decode(_data_url_bytes(source), "the data: URL")
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source).expanduser(), base_dir)
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


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except OSError as error:  # files are decoded lazily: a truncated one fails only here
        raise ValueError(f"the image cannot be decoded ({error}): replace or remove it") from error


def _decode(data: bytes, what: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except OSError as error:
        raise ValueError(f"{what} cannot be read as an image ({error}): replace or remove it") from error
    return _to_rgb(image)


def _read(path: Path, base_dir: Path | None) -> Image.Image:
    path = path if base_dir is None else base_dir / path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"the image file {path} cannot be opened ({error.strerror}): check the path; "
            f"relative paths start from {base_dir or Path.cwd()}"
        ) from error
    return _decode(data, str(path))


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "transformers-qaig"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S) as response:
            return response.read()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the image {url} cannot be downloaded ({error}): check the address and the connection, "
            "or give a local file instead"
        ) from error


def _data_url_bytes(url: str) -> bytes:
    header, _, payload = url.partition(",")
    if not header.endswith(";base64"):
        raise ValueError(f"a data: URL must be base64 ('data:image/png;base64,...'), this one starts {header[:40]!r}")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data: URL is not valid base64 ({error})") from error


def _from_array(source: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(source, torch.Tensor):
        source = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()  # numpy has no bf16
    array = source
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(
            f"an image array must be [H, W], [H, W, C] or [C, H, W] with C in (1, 3, 4), not {array.shape}"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 255:
        raise ValueError(
            f"an image array must hold integers in 0..255 or floats in 0..1, this one spans {low:g}..{high:g}: "
            "give the image before the processor's normalisation"
        )
    if np.issubdtype(array.dtype, np.floating) and high <= 1:
        array = array * 255
    return _to_rgb(Image.fromarray(np.rint(array).astype(np.uint8)))
