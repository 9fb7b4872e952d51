"""Pixels in every form come out right, or are refused with what to do."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_qaig.data.images import open_image

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SIXTEEN_BIT = Image.frombytes("I;16", (8, 8), RAMP.astype("<u2").tobytes())
BIG_ENDIAN = Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "source",
    [
        SIXTEEN_BIT,
        BIG_ENDIAN,
        file_of(SIXTEEN_BIT, "PNG"),
        file_of(BIG_ENDIAN, "TIFF"),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray((RAMP / 65535).astype(np.float32)),
        Image.fromarray((RAMP / 257).astype(np.float32)),
        RAMP,
        RAMP.astype(">u2"),
        RAMP.astype(np.int64),
        np.stack([RAMP] * 3, axis=-1),
        torch.from_numpy(RAMP.astype(np.int32)),
        torch.from_numpy((RAMP / 65535).astype(np.float32)).expand(3, 8, 8),
        RAMP / 65535,
    ],
)
def test_grey_levels_are_scaled_and_not_cut(source: Any) -> None:
    levels = np.asarray(open_image(source))
    assert levels.shape == (8, 8, 3)
    assert np.array_equal(levels[..., 0], np.rint(RAMP / 257))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La"])
def test_modes_of_pil(mode: str) -> None:
    white = Image.new("RGB", (5, 4), "white")
    image = white.convert("LA").convert("La") if mode == "La" else white.convert("RGBA").convert(mode)
    assert np.asarray(open_image(image)).min() == 255
    assert np.asarray(open_image(image)).shape == (4, 5, 3)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_what_is_transparent_turns_white(mode: str) -> None:
    assert np.asarray(open_image(Image.new(mode, (4, 4)))).min() == 255


def test_a_transparent_entry_of_a_palette_turns_white() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0])
    assert np.asarray(open_image(file_of(image, "PNG", transparency=0))).min() == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    movie = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(movie))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.array([[0, np.nan]]), "NaN or infinity"),
        (Image.fromarray(np.array([[0, np.inf]], np.float32)), "NaN or infinity"),
        (np.array([[0, 70000]]), r"0\.\.70000"),
        (np.array([[-1.5, 2.0]]), "before the processor's normalisation"),
        (np.zeros((2, 2), complex), "complex128"),
        (torch.ones(3, 4, 4).to_sparse(), "ordinary dense"),
        (torch.ones(3, 4, 4, device="meta"), "ordinary dense"),
        (torch.nested.nested_tensor([torch.ones(4, 4), torch.ones(2, 4)]), "ordinary dense"),
        (np.array([["a"]]), "not <U1"),
        (np.zeros((0, 3)), "not empty"),
        (np.zeros((2, 4, 4, 3)), r"\[H, W, C\]"),
        (Image.new("RGB", (0, 5)), "no pixels .*0x5"),
        (b"", "cannot be decoded"),
        ({"path": None, "bytes": None}, "'bytes' or 'path'"),
    ],
)
def test_pixels_without_a_known_range_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_image(source)


def test_an_image_over_pils_limit_says_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(Image.new("1", (300, 200)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"more pixels than PIL allows.*scale it down.*MAX_IMAGE_PIXELS"):
        open_image(data)
