"""Trains the new tower and its merger from nothing to give the tokens that the tiny VLM's tower and projector give.

    python examples/tiny-vlm-qwen/distil.py --state tower.safetensors --output tower

The state is written as the training goes on, and an interrupted run goes on from it. A new tower has no positions of
its own, so the mean of a place's tokens is taken off: the language model gets places from m-rope.
"""

from __future__ import annotations

from pathlib import Path

import torch
from harder_scenes import scene as harder_scene
from loop import FIRST_SEED, optimizers_of, options_of, train
from pictures import make_fast, patches_of, pixels_of
from scenes import scene
from start import LLAVA, make_model, make_processor
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

BATCH = 16
FIRST_STATISTICS = FIRST_SEED + 900_000
"""Seed of the first picture that means and deviations are taken from."""


def pictures(first: int, count: int) -> Tensor:
    """Returns pictures from this seed on; every other one is of the harder scenes."""
    return pixels_of([(harder_scene, scene)[seed % 2](seed)[0] for seed in range(first, first + count)])


class Teacher:
    """The tiny VLM's tower and projector, their output with mean 0 and variance 1 in each channel, without places."""

    def __init__(self) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(LLAVA, dtype=torch.float32).eval()
        tokens = torch.cat([self._tokens(pictures(FIRST_STATISTICS + 64 * i, 64)) for i in range(16)])
        self.mean, self.places = tokens.mean((0, 1)), tokens.mean(0)
        self.deviation = (tokens - self.places).std((0, 1))

    @torch.no_grad()
    def _tokens(self, pixels: Tensor) -> Tensor:
        return torch.stack([*self.model.model.get_image_features(pixels).pooler_output])

    def tokens(self, pixels: Tensor) -> Tensor:
        """Returns `[B, 64, 256]`."""
        return (self._tokens(pixels) - self.places) / self.deviation

    @torch.no_grad()
    def scale(self, merger: nn.Module) -> None:
        """Makes a merger give tokens as the projector does, with their means and deviations."""
        last = merger.mlp[-1]
        last.weight.mul_(self.deviation[:, None])
        last.bias.mul_(self.deviation).add_(self.mean)


def main() -> None:
    parser = options_of(__doc__, steps=1400, rate=3e-3)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model with the trained tower")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    processor = make_processor()
    model, teacher = make_model(processor), Teacher()
    tower = model.model.visual
    expected = processor.image_processor(images=[scene(FIRST_SEED)[0]], return_tensors="pt")
    made = patches_of(pixels_of([scene(FIRST_SEED)[0]]))
    if any((made[name] - expected[name]).abs().max() > 1e-5 for name in made):
        raise RuntimeError("The processor makes other patches than `patches_of`.")
    make_fast(tower)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels = pictures(FIRST_SEED + step * BATCH, BATCH)
        inputs = patches_of(pixels)
        tokens = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        loss = (tokens - teacher.tokens(pixels).flatten(0, 1)).square().mean()
        return loss, {"error": loss.item()}

    matrices = [parameter for parameter in tower.blocks.parameters() if parameter.ndim == 2]
    if train(tower, optimizers_of(tower, matrices, options.rate), loss_of, options):
        teacher.scale(tower.merger)
        model.save_pretrained(options.output)
        processor.save_pretrained(options.output)


if __name__ == "__main__":
    main()
