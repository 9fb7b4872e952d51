"""Converts pixels of any form (8 or 16 bits, floating point, palette, transparent, CMYK) to 8-bit RGB."""

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

_WIDE_MODES = ("I", "F")  # and the 16-bit ones, "I;16" to "I;16B": PIL cuts them at 255 where it converts to RGB
_CHANNELS = (1, 3, 4)
_TRANSPARENT_MODES = ("LA", "PA", "RGBA", "La", "RGBa")


def to_rgb(image: Image.Image, what: str = "the image") -> Image.Image:
    """Converts a PIL image of any mode to RGB.

    Args:
        image: may not be decoded yet.
        what: how an error names it.

    Returns:
        `PIL.Image.Image` in mode `RGB`: EXIF rotation applied, transparency laid over white, 16 bits scaled to 8.

    Raises:
        ValueError: it cannot be decoded, has no pixels, or its values have no known range.
    """
    if 0 in image.size:
        raise ValueError(f"{what} has no pixels (it is {image.width}x{image.height}): remove it")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
            array = np.asarray(image)
        elif image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        else:
            return image.convert("RGB")
    except Exception as error:  # files are decoded lazily, and decoders raise every kind
        raise unreadable(what, error) from error
    sixteen_bits = image.mode.startswith("I;16")
    return Image.fromarray(_scaled(array, 65535 if sixteen_bits else None)).convert("RGB")


def from_array(source: np.ndarray | torch.Tensor) -> Image.Image:
    """Converts an array to an RGB image.

    Args:
        source: `[H, W]`, `[H, W, C]` or `[C, H, W]` with C in (1, 3, 4): bool; integers in 0..255, or in 0..65535
            (16 bits) where one is above 255; floats in 0..1, or in 0..255 where one is above 1.

    Raises:
        ValueError: another shape or range, no pixels, NaN or infinity.
    """
    array = to_array(source)
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(
            f"an image array must be [H, W], [H, W, C] or [C, H, W] with C in (1, 3, 4) and not empty, "
            f"not {array.shape}"
        )
    return to_rgb(Image.fromarray(np.ascontiguousarray(_scaled(array))))


def frames_from_array(source: np.ndarray | torch.Tensor) -> list[Image.Image]:
    """Converts the array of a video to RGB images, all scaled alike.

    Args:
        source: `[T, H, W, C]` or `[T, C, H, W]`, with values as in [`from_array`].

    Raises:
        ValueError: another shape or range, no pixels, NaN or infinity.
    """
    array = to_array(source)
    if array.ndim == 4 and array.shape[1] in _CHANNELS and array.shape[3] not in _CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in _CHANNELS or array.size == 0:
        raise ValueError(
            f"a video array must be [T, H, W, C] or [T, C, H, W] with C in (1, 3, 4) and not empty, not {array.shape}"
        )
    return [from_array(frame) for frame in _scaled(array)]


def to_array(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Converts a tensor to an array; an array stays as it is.

    Raises:
        ValueError: it is no ordinary dense tensor.
    """
    if not isinstance(source, torch.Tensor):
        return source
    if source.is_meta or source.is_nested or source.layout != torch.strided or source.is_quantized:
        raise ValueError("an image tensor must be an ordinary dense one with values: call to_dense() first")
    return (source.float() if source.is_floating_point() else source).detach().cpu().numpy()  # numpy has no bf16


def unreadable(what: str, error: Exception) -> ValueError:
    """Makes the error to raise where PIL raised `error` at `what`."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ValueError(
            f"{what} has more pixels than PIL allows ({error}): scale it down beforehand, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    reason = (
        "no image that PIL reads" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
    )
    return ValueError(f"{what} cannot be decoded ({reason}): replace or remove it")


def _scaled(array: np.ndarray, white: float | None = None) -> np.ndarray:
    """Scales `array` to uint8, so that `white` becomes 255.

    Without `white` it is the smallest of 1 (floats only), 255 and 65535 (integers only) that no value exceeds.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an image array must hold integers, floats or bools, not {array.dtype}")
    if array.dtype.kind == "b":
        array, white = array.astype(np.uint8), 1
    floating = array.dtype.kind == "f"
    if floating and not np.isfinite(array).all():
        raise ValueError("the image holds NaN or infinity: mend or remove it")
    low, high = float(array.min()), float(array.max())
    if white is None:
        white = next((w for w in ((1, 255) if floating else (255, 65535)) if high <= w), None)
    if white is None or low < 0:
        raise ValueError(
            f"an image must hold integers in 0..255 or 0..65535, or floats in 0..1 or 0..255, "
            f"this one spans {low:g}..{high:g}: give the image before the processor's normalisation, or scale it"
        )
    if white == 255 and not floating:
        return array.astype(np.uint8)
    return np.rint(array.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
