"""Heatmaps of λ."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_qaig.report.heatmap import TokenMap, save_heatmaps

HEIGHT, WIDTH, WORDS = 4, 6, 5
TOTAL = HEIGHT * WIDTH + WORDS


def token_map(
    weights: Any = None, grid: tuple[int, int] | None = (HEIGHT, WIDTH), tokens: list[str] | None = None
) -> TokenMap:
    positions = torch.zeros(TOTAL, dtype=torch.bool)
    positions[1 : 1 + HEIGHT * WIDTH] = True
    return TokenMap(
        image=Image.new("RGB", (60, 40), "white"),
        tokens=["$x^2$"] * TOTAL if tokens is None else tokens,
        weights=torch.rand(TOTAL, dtype=torch.float32).bfloat16() if weights is None else weights,
        image_positions=positions,
        grid=grid,
        title="what is $this ?",
    )


def redness(path: Path) -> np.ndarray:
    """How far each pixel is from grey, `[H, W]`."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return pixels.max(-1) - pixels.min(-1)


def test_a_weight_is_drawn_where_it_is(tmp_path: Path) -> None:
    """All of λ on one token: its place in the picture is dark red, and moves with it."""

    def spot(token: int) -> np.ndarray:
        weights = torch.full((TOTAL,), 0.5)
        weights[1 + token] = 5.0
        save_heatmaps(tmp_path / "map.png", [token_map(weights)])
        image = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
        image = image[: image.shape[0] // 2, : int(image.shape[1] * 0.75)]  # without bars and colour scale
        pixels = np.argwhere((image[..., 0] > 100) & (image[..., 1] < 40) & (image[..., 2] < 60))
        assert len(pixels) > 100
        return pixels.mean(axis=0)

    corner, right, below = spot(0), spot(WIDTH - 1), spot((HEIGHT - 1) * WIDTH)
    assert right[1] > corner[1] + 100
    assert abs(right[0] - corner[0]) < 5
    assert below[0] > corner[0] + 60
    assert abs(below[1] - corner[1]) < 5


@pytest.mark.parametrize("number", [1, 5])
def test_writes_a_png_of_any_number(tmp_path: Path, number: int) -> None:
    save_heatmaps(tmp_path / "maps.png", [token_map() for _ in range(number)])
    with Image.open(tmp_path / "maps.png") as image:
        assert image.format == "PNG"
        assert image.width > 300


@pytest.mark.parametrize("grid", [None, (3, 3)])
def test_no_single_grid_shows_the_plain_picture(tmp_path: Path, grid: tuple[int, int] | None) -> None:
    save_heatmaps(tmp_path / "plain.png", [token_map(grid=grid)])
    save_heatmaps(tmp_path / "map.png", [token_map()])
    assert (redness(tmp_path / "plain.png") > 40).sum() < 0.5 * (redness(tmp_path / "map.png") > 40).sum()


def test_uniform_weights_and_no_words(tmp_path: Path) -> None:
    positions = torch.ones(HEIGHT * WIDTH, dtype=torch.bool)
    item = TokenMap(
        Image.new("RGB", (8, 8)), [""] * len(positions), np.ones(len(positions)), positions, (HEIGHT, WIDTH)
    )
    save_heatmaps(tmp_path / "map.png", [item])
    assert (tmp_path / "map.png").is_file()


def test_refuses_arrays_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one entry per token"):
        save_heatmaps(tmp_path / "x.png", [token_map(tokens=["a"])])
    with pytest.raises(ValueError, match="finite"):
        save_heatmaps(tmp_path / "x.png", [token_map(torch.full((TOTAL,), torch.nan))])
    with pytest.raises(ValueError, match="empty"):
        save_heatmaps(tmp_path / "x.png", [])
    assert not (tmp_path / "x.png").exists()


def test_says_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        save_heatmaps(tmp_path / "x.png", [token_map()])
