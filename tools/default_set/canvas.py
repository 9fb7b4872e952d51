"""A small drawing board over Pillow: twice the size while drawn, smooth when taken down."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FACES = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "oblique": "DejaVuSans-Oblique.ttf",
    "mono": "DejaVuSansMono.ttf",
    "monobold": "DejaVuSansMono-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serifbold": "DejaVuSerif-Bold.ttf",
    "times": "STIXGeneral.ttf",
    "timesbold": "STIXGeneralBol.ttf",
    "timesitalic": "STIXGeneralItalic.ttf",
}
Turns = list[tuple[str, str]]


@dataclass
class Picture:
    """An image and the conversations about it: each a list of (question, answer) turns."""

    image: Image.Image
    conversations: list[Turns] = field(default_factory=list)


@cache
def font(face: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / FACES[face], size * SCALE)


def lerp(a: str | tuple, b: str | tuple, t: float) -> tuple[int, ...]:
    """The colour at `t` between two colours."""
    a, b = rgb(a), rgb(b)
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))


def rgb(colour: str | tuple) -> tuple[int, int, int]:
    from PIL import ImageColor

    return ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else tuple(colour[:3])


class Canvas:
    """Coordinates and sizes are those of the finished picture."""

    def __init__(self, width: int, height: int, background: str | tuple = "white", image: Image.Image | None = None):
        self.width, self.height = width, height
        size = (width * SCALE, height * SCALE)
        self.pixels = image.convert("RGB").resize(size) if image else Image.new("RGB", size, rgb(background))
        self.draw = ImageDraw.Draw(self.pixels, "RGBA")

    def image(self) -> Image.Image:
        return self.pixels.resize((self.width, self.height), Image.Resampling.LANCZOS)

    def gradient(self, top: str | tuple, bottom: str | tuple, box: tuple | None = None) -> None:
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        ramp = np.linspace(0, 1, int((y1 - y0) * SCALE))[:, None, None]
        rows = np.array(rgb(top)) * (1 - ramp) + np.array(rgb(bottom)) * ramp
        block = np.broadcast_to(rows, (rows.shape[0], int((x1 - x0) * SCALE), 3))
        self.pixels.paste(Image.fromarray(block.round().astype(np.uint8)), (int(x0 * SCALE), int(y0 * SCALE)))

    def rect(self, x0, y0, x1, y1, fill=None, outline=None, width=1.0, radius=0.0) -> None:
        box = [v * SCALE for v in (x0, y0, x1, y1)]
        w = round(width * SCALE)
        if radius:
            self.draw.rounded_rectangle(box, radius * SCALE, fill=fill, outline=outline, width=w)
        else:
            self.draw.rectangle(box, fill=fill, outline=outline, width=w)

    def circle(self, x, y, r, fill=None, outline=None, width=1.0, ry=None) -> None:
        ry = r if ry is None else ry
        box = [v * SCALE for v in (x - r, y - ry, x + r, y + ry)]
        self.draw.ellipse(box, fill=fill, outline=outline, width=round(width * SCALE))

    def pie(self, x, y, r, start, end, fill=None, outline=None, width=1.0) -> None:
        box = [v * SCALE for v in (x - r, y - r, x + r, y + r)]
        self.draw.pieslice(box, start, end, fill=fill, outline=outline, width=round(width * SCALE))

    def arc(self, x, y, r, start, end, fill="black", width=1.0) -> None:
        box = [v * SCALE for v in (x - r, y - r, x + r, y + r)]
        self.draw.arc(box, start, end, fill=fill, width=round(width * SCALE))

    def poly(self, points, fill=None, outline=None, width=1.0) -> None:
        points = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.polygon(points, fill=fill, outline=outline, width=round(width * SCALE))

    def line(self, points, fill="black", width=1.0, dash: float = 0.0) -> None:
        if dash:
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                n = max(1, int(math.hypot(x1 - x0, y1 - y0) / dash))
                for i in range(0, n, 2):
                    a, b = i / n, min(1, (i + 1) / n)
                    ends = [(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)]
                    self.line(ends, fill, width)
            return
        flat = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(flat, fill=fill, width=max(1, round(width * SCALE)), joint="curve")

    def arrow(self, points, fill="black", width=1.5, head=8.0, dash: float = 0.0) -> None:
        (x0, y0), (x1, y1) = points[-2:]
        angle = math.atan2(y1 - y0, x1 - x0)
        back = (x1 - 0.8 * head * math.cos(angle), y1 - 0.8 * head * math.sin(angle))
        self.line([*points[:-1], back], fill, width, dash)
        wings = [(x1 - head * math.cos(angle + s * 0.42), y1 - head * math.sin(angle + s * 0.42)) for s in (-1, 1)]
        self.poly([(x1, y1), *wings], fill=fill)

    def text(self, x, y, text, size=14.0, fill="black", face="sans", anchor="la", halo=None) -> float:
        """Writes one line and returns its width; `anchor` as in Pillow ("la" left top, "mm" middle)."""
        edge = {} if halo is None else {"stroke_width": 2 * SCALE, "stroke_fill": halo}
        self.draw.text((x * SCALE, y * SCALE), text, font=font(face, size), fill=fill, anchor=anchor, **edge)
        return self.text_width(text, size, face)

    def text_width(self, text: str, size: float, face: str = "sans") -> float:
        return font(face, size).getlength(text) / SCALE

    def paragraph(self, x, y, text, width, size=13.0, fill="black", face="sans", spacing=1.45) -> float:
        """Writes wrapped text and returns the y below it."""
        for block in text.split("\n"):
            line = ""
            for word in block.split(" "):
                longer = f"{line} {word}".strip()
                if line and self.text_width(longer, size, face) > width:
                    self.text(x, y, line, size, fill, face)
                    y += size * spacing
                    line = word
                else:
                    line = longer
            self.text(x, y, line, size, fill, face)
            y += size * spacing
        return y


def paper(image: Image.Image, rng: np.random.Generator, angle: float = 0.0, desk: str = "#6b5b4b") -> Image.Image:
    """Makes a drawing look photographed: on a desk, slightly turned, unevenly lit, with a little grain."""
    width, height = image.size
    margin = 26
    sheet = Image.new("RGB", (width + 2 * margin, height + 2 * margin), rgb(desk))
    shadow = Image.new("RGB", (width, height), lerp(desk, "black", 0.45))
    for picture, shift in ((shadow, 5), (image, 0)):
        turned = picture.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
        at = ((sheet.width - turned.width) // 2 + shift, (sheet.height - turned.height) // 2 + shift)
        sheet.paste(turned, at, turned)
    pixels = np.asarray(sheet, dtype=np.float32)
    y, x = np.mgrid[0 : sheet.height, 0 : sheet.width]
    cx, cy = rng.uniform(0.2, 0.8, 2)
    light = 1.06 - 0.3 * np.hypot(x / sheet.width - cx, y / sheet.height - cy)
    tint = np.array([1.0, rng.uniform(0.96, 1.0), rng.uniform(0.88, 0.97)])
    grain = rng.normal(0, 2.0, (sheet.height, sheet.width, 1))
    return Image.fromarray(np.clip(pixels * light[..., None] * tint + grain, 0, 255).astype(np.uint8))


def handwrite(canvas: Canvas, rng, x, y, text, size=20.0, fill="#1d2f6f", face="timesitalic") -> float:
    """Writes with an unsteady hand: every letter a little turned, raised and resized; returns the end's x."""
    drift = rng.uniform(-0.02, 0.02)
    start = x
    for letter in text:
        this = round(size * rng.uniform(0.94, 1.07) * 4) / 4
        width = canvas.text_width(letter, this, face)
        if letter != " ":
            box = int(this * 3 * SCALE)
            glyph = Image.new("L", (box, box), 0)
            ImageDraw.Draw(glyph).text((box / 2, box / 2), letter, font=font(face, this), fill=255, anchor="ms")
            glyph = glyph.rotate(rng.normal(0, 4), Image.Resampling.BICUBIC)
            at = ((x + width / 2) * SCALE - box / 2, (y + drift * (x - start) + rng.normal(0, 0.6)) * SCALE - box / 2)
            canvas.pixels.paste(rgb(fill), (round(at[0]), round(at[1])), glyph)
        x += width * rng.uniform(0.93, 1.04)
    return x
