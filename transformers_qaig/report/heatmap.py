"""Draws token weights λ over the pictures, and as bars over the words. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.files import written_whole

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

COLUMNS = 4
MOST_LABELS = 48  # more words than this cannot be read under their bars
COLOURS = "YlOrRd"
SHARPNESS = 480  # pixels of a picture's longer side
INK, MUTED = "#222222", "#8a8a8a"


@dataclass(frozen=True)
class TokenMap:
    """The token weights λ of one sample.

    Attributes:
        image: the picture.
        tokens: `T` strings to write under the bars.
        weights: λ `[T]`, ≥ 0, any real dtype; 1 is the weight of an average token.
        image_positions: bool `[T]`, True at the picture's tokens.
        grid: (h, w) of the picture's tokens, row by row; None if they form no single grid (tiles, thumbnails).
        title: one line above the picture.
    """

    image: Image
    tokens: Sequence[str]
    weights: Tensor | np.ndarray
    image_positions: Tensor | np.ndarray
    grid: tuple[int, int] | None
    title: str = ""

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns λ float32 `[T]` and the picture's positions bool `[T]`, checked against each other."""
        weights, positions = (_numpy(array) for array in (self.weights, self.image_positions))
        weights, positions = weights.astype(np.float32), positions.astype(bool)
        if not weights.shape == positions.shape == (len(self.tokens),):
            raise ValueError(
                f"TokenMap {self.title!r}: tokens, weights and image_positions must have one entry per token, got "
                f"{len(self.tokens)}, {weights.shape} and {positions.shape}."
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(f"TokenMap {self.title!r}: weights must be finite and not negative.")
        return weights, positions


def save_heatmaps(path: str | os.PathLike[str], items: Sequence[TokenMap]) -> None:
    """Draws every item as its picture under λ, with λ of its words in bars below, into one PNG.

    All pictures share one colour scale, which spans 96 % of the tokens. An item whose picture tokens do not fill one
    grid gets the plain picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no items, or arrays that do not fit each other.
    """
    if not items:
        raise ValueError("items is empty: there is nothing to draw.")
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Heatmaps need matplotlib: `pip install matplotlib`.") from error

    arrays = [item.arrays() for item in items]
    weights = np.concatenate([w for w, _ in arrays])
    low, high = (float(value) for value in np.quantile(weights, [0.02, 0.98]))
    scale = Normalize(low, high) if high > low else Normalize(low - 0.5, low + 0.5)
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.9, 4.2 * rows + 0.3), dpi=120, layout="constrained", facecolor="white")
    cells = figure.add_gridspec(2 * rows, columns, height_ratios=[3.0, 1.0] * rows)
    pictures = []
    for index, (item, (values, positions)) in enumerate(zip(items, arrays)):
        row, column = divmod(index, columns)
        picture = figure.add_subplot(cells[2 * row, column])
        pictures.append(picture)
        _draw_picture(picture, item, values[positions], scale)
        _draw_words(figure.add_subplot(cells[2 * row + 1, column]), item, values, positions, scale)
    bar = figure.colorbar(
        ScalarMappable(scale, COLOURS), ax=pictures, fraction=0.025, pad=0.02, aspect=30, extend="both"
    )
    bar.set_label("token weight λ (1 = average token)", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_picture(axes: Any, item: TokenMap, values: np.ndarray, scale: Any) -> None:
    width, height = item.image.size
    extent = (0, width, height, 0)
    axes.set_title(item.title, fontsize=9, color=INK, parse_math=False)
    axes.set_axis_off()
    if item.grid is None or item.grid[0] * item.grid[1] != len(values):
        axes.imshow(item.image.convert("RGB"), extent=extent)
        return
    axes.imshow(_tinted(item.image, values.reshape(item.grid), scale), extent=extent)


def _tinted(image: Image, heat: np.ndarray, scale: Any) -> np.ndarray:
    """Returns the picture in light grey times the colour of λ, float `[H, W, 3]`; λ is smoothed between tokens."""
    from matplotlib import colormaps
    from PIL import Image as Pillow
    from PIL import ImageOps

    enlarge = max(1, round(SHARPNESS / max(image.size)))
    size = (image.width * enlarge, image.height * enlarge)
    picture = ImageOps.autocontrast(image.convert("L"), cutoff=(1, 20)).resize(size, Pillow.Resampling.BICUBIC)
    grey = np.asarray(picture, dtype=np.float32) / 255
    smooth = Pillow.fromarray(heat.astype(np.float32)).resize(size, Pillow.Resampling.BICUBIC)
    colour = colormaps[COLOURS](scale(np.asarray(smooth)))[..., :3]
    return (0.4 + 0.6 * grey)[..., None] * colour


def _draw_words(axes: Any, item: TokenMap, values: np.ndarray, positions: np.ndarray, scale: Any) -> None:
    from matplotlib import colormaps

    words = [token for token, is_image in zip(item.tokens, positions) if not is_image]
    heights = values[~positions]
    axes.bar(
        range(len(words)), heights, width=0.8, color=colormaps[COLOURS](scale(heights)), edgecolor=MUTED, linewidth=0.4
    )
    axes.axhline(1.0, color=MUTED, linewidth=0.6, linestyle=":")
    axes.set_xlim(-0.7, max(len(words), 8) - 0.3)
    axes.set_ylim(0, max(1.2, float(heights.max(initial=0.0)) * 1.05))
    labelled = len(words) <= MOST_LABELS
    axes.set_xticks(
        range(len(words)) if labelled else [],
        words if labelled else [],
        rotation=90,
        fontsize=7 if len(words) <= 24 else 5,
        parse_math=False,
    )
    axes.tick_params(axis="both", length=0, colors=INK)
    axes.tick_params(axis="y", labelsize=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _numpy(array: Any) -> np.ndarray:
    return array.detach().float().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
