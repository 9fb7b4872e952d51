"""Pictures made of light rather than lines: noise, ridges and a small ray tracer (numpy only)."""

from __future__ import annotations

import numpy as np
from canvas import lerp, rgb
from PIL import Image

Array = np.ndarray
ZOOM, PITCH = (
    0.82,
    0.2,
)  # of the ray tracer's camera: height of the picture plane at distance 1, and how far it looks down
EYE = (0.0, 1.5, -5.2)


def fbm(
    rng, width: int, height: int, cells: float = 4, octaves: int = 6, gain: float = 0.5, stretch: float = 1.0
) -> Array:
    """Cloud-like noise `[height, width]` in 0..1: octaves of smooth random grids, each finer and weaker."""
    total, weight = np.zeros((height, width)), 1.0
    for octave in range(octaves):
        nx = max(2, round(cells * 2**octave) + 1)
        ny = max(2, round(cells * 2**octave * height / width * stretch) + 1)
        grid = Image.fromarray(rng.random((min(ny, height), min(nx, width))).astype(np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weight *= gain
    return (total - total.min()) / (total.max() - total.min())


def ramp(values: Array, stops: list[tuple[float, str]]) -> Array:
    """Colours `[..., 3]` in 0..255 for `values`, interpolated between (value, colour) stops."""
    at = [s for s, _ in stops]
    return np.stack([np.interp(values, at, [rgb(c)[k] for _, c in stops]) for k in range(3)], -1)


def blend(below: Array, above, mask: Array) -> Array:
    """`above` over `below` where `mask` (0..1) says."""
    return below + (np.asarray(above, dtype=float) - below) * mask[..., None]


def to_image(pixels: Array, size: tuple[int, int] | None = None, rng=None, grain: float = 0.0) -> Image.Image:
    if grain:
        pixels = pixels + rng.normal(0, grain, (*pixels.shape[:2], 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.LANCZOS) if size else image


def ridge(rng, width: int, base: float, height: float, cells: float, rough: float = 0.5) -> Array:
    """A skyline: the y of its edge for each x."""
    return base - height * fbm(rng, width, 2, cells, 7, rough)[0]


def landscape(
    rng, width: int, height: int, sky: list, far: str, near: str, layers: int, horizon: float, peak: float
) -> Array:
    """Ranges of hills, hazier with distance, under a sky with clouds; `[height, width, 3]`."""
    y = np.mgrid[0:height, 0:width][0]
    pixels = ramp(y / height, sky)
    clouds = np.clip(fbm(rng, width, height, 3, 6, 0.55, 2.5) * 2.2 - 1.15, 0, 1) * np.clip(
        1 - y / (height * horizon), 0, 1
    )
    pixels = blend(pixels, (255, 250, 244), clouds * 0.75)
    for k in range(layers):
        t = k / max(1, layers - 1)
        edge = ridge(
            rng,
            width,
            height * (horizon + (1.02 - horizon) * t**1.3),
            height * peak * (1 - 0.55 * t),
            2.5 + 2 * t,
            0.48,
        )
        colour = np.array(lerp(far, near, t), dtype=float)
        light = 0.82 + 0.36 * fbm(rng, width, height, 10 + 12 * t, 5, 0.6)
        mask = np.clip(y - edge[None], 0, 1)
        haze = np.clip((y - edge[None]) / (height * 0.3), 0, 1)[..., None] * (1 - t) * 0.5
        body = colour * light[..., None] * (1 - haze) + np.array(rgb(sky[-1][1])) * haze
        pixels = pixels + (body - pixels) * mask[..., None]
    return pixels


def spheres(balls: list[tuple], floor, sky: tuple, width: int, height: int, light=(-0.55, 0.75, -0.45)) -> Array:
    """
    Ray-traces balls on a floor: diffuse and mirror light, soft shadows, one reflection.

    Args:
        balls: (centre xyz, radius, colour 0..255, mirror share 0..1).
        floor: function of the arrays x, z giving colours `[..., 3]`.
        sky: colours at the horizon and overhead.
    """
    aspect = width / height
    v, u = np.mgrid[0:height, 0:width]
    rays = np.stack([(u / width - 0.5) * ZOOM * aspect, (0.5 - v / height) * ZOOM - PITCH, np.ones_like(u, float)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    origin = np.broadcast_to(np.array(EYE), rays.shape)
    sun = np.array(light, float) / np.linalg.norm(light)

    def hit(start, ray):
        best = np.full(start.shape[:-1], np.inf)
        which = np.full(start.shape[:-1], -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(ray[..., 1] < -1e-6, -start[..., 1] / ray[..., 1], np.inf)
        t = np.where(t > 1e-3, t, np.inf)
        best, which = np.where(t < best, t, best), np.where(t < best, len(balls), which)
        for k, (centre, radius, *_) in enumerate(balls):
            off = start - np.array(centre)
            b = (off * ray).sum(-1)
            disc = b * b - (off * off).sum(-1) + radius * radius
            t = -b - np.sqrt(np.maximum(disc, 0))
            ok = (disc > 0) & (t > 1e-3) & (t < best)
            best, which = np.where(ok, t, best), np.where(ok, k, which)
        return best, which

    def lit(point):
        """Share of the sun that reaches each point: how near its ray passes by any ball softens the edge."""
        share = np.ones(point.shape[:-1])
        for centre, radius, *_ in balls:
            off = np.array(centre) - point
            along = (off * sun).sum(-1)
            miss = np.sqrt(np.maximum((off * off).sum(-1) - along**2, 0)) - radius
            share = np.minimum(share, np.where(along > 0, np.clip(miss / (0.09 * along + 1e-3) + 0.5, 0, 1), 1))
        return share

    def shade(start, ray, depth):
        sky_t = np.clip(ray[..., 1] * 1.6, 0, 1)[..., None]
        colour = np.array(rgb(sky[0])) * (1 - sky_t) + np.array(rgb(sky[1])) * sky_t
        t, which = hit(start, ray)
        solid = np.isfinite(t)
        point = start + ray * np.where(solid, t, 0)[..., None]
        normal = np.zeros_like(ray)
        normal[..., 1] = 1
        base = floor(point[..., 0], point[..., 2])
        mirror = np.full(t.shape, 0.06)
        for k, (centre, radius, tint, share) in enumerate(balls):
            mine = which == k
            normal[mine] = (point[mine] - np.array(centre)) / radius
            base = np.where(mine[..., None], np.array(tint, float), base)
            mirror = np.where(mine, share, mirror)
        face = np.clip((normal * sun).sum(-1), 0, 1) * lit(point + normal * 2e-3)
        body = base * (0.32 + 0.12 * normal[..., 1] + 0.72 * face)[..., None]
        bounce = ray - 2 * (ray * normal).sum(-1, keepdims=True) * normal
        ball = (which >= 0) & (which < len(balls))
        gloss = np.where(ball, np.clip((bounce * sun).sum(-1), 0, 1) ** 60 * (face > 0), 0)
        if depth:
            seen = shade(point + normal * 2e-3, bounce, depth - 1)
            fresnel = (mirror + (1 - mirror) * 0.5 * (1 - np.clip(-(ray * normal).sum(-1), 0, 1)) ** 5)[..., None]
            body = body * (1 - fresnel) + seen * fresnel
        body = body + 210 * gloss[..., None]
        haze = np.clip((np.where(solid, t, 0) - 9) / 26, 0, 1)[..., None] * ~ball[..., None]
        return np.where(solid[..., None], body * (1 - haze) + np.array(rgb(sky[0])) * haze, colour)

    return shade(origin, rays, 1)
