"""
What it brings to map the rows of a linear's input to tokens, where that has another rank than the block's.

    python -m tests.sweep.input_ranks --families gemma3n llama4_text

The table in docs/guides/families.md is written by hand from these lines.

Each family is a tiny random model, as in `python -m tests.sweep`. It is quantized twice on the same samples. "before"
rounds to nearest each linear whose input has another rank than what enters the block, as the package once did. The
error is that of the logits on samples with other texts: squared, relative to the full-precision logits. `share` says
how many of the packed weights those linears hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from tests import torchvision_on_cpu

torchvision_on_cpu.make_importable()

import torch  # noqa: E402
import transformers  # noqa: E402
from ledger import provenance  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tests.sweep.models import tiny  # noqa: E402
from transformers_qaig import QAIGConfig  # noqa: E402
from transformers_qaig.data.decoder_inputs import DecoderInputs  # noqa: E402
from transformers_qaig.execution.layer_inputs import hidden_states  # noqa: E402
from transformers_qaig.execution.token_rows import RowFinder, Rows  # noqa: E402

FAMILIES = ("gemma3n", "glm5_next", "blip-2", "llama4_text", "kimi_k25", "hy_v4_vl")
FIRST_TEXT = 70
"""Token ids from here on are text; others have a meaning in some family."""
COPIES, GROUP_SIZE = 4, 32
Sample = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    print(json.dumps(provenance() | {"options": vars(options)}), flush=True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for family in options.families:
        print(json.dumps(measure(family, options)), flush=True)


def measure(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """Quantizes a family both ways."""
    model, samples = tiny(family)
    generator = torch.Generator().manual_seed(0)
    dataset = [other_text(sample, generator) for _ in range(COPIES) for sample in samples]
    unseen = [other_text(sample, generator) for sample in samples]
    expected = [logits_of(model, sample) for sample in unseen]
    config = {"bits": options.bits, "group_size": GROUP_SIZE, "recipe": options.recipe, "dataset": dataset}
    found, nearest = {}, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, rows in (("before", own_rank_only), ("after", RowFinder.rows)):
            with patch.object(RowFinder, "rows", rows):
                packed = type(model).from_pretrained(
                    folder, quantization_config=QAIGConfig(**config, num_samples=len(dataset))
                )
            found[name] = error([logits_of(packed, sample) for sample in unseen], expected)
            paths = {f"{block.path}.{linear}" for block in packed.qaig_report.targets for linear in block.to_nearest}
            nearest = paths if name == "before" else nearest - paths
    weights = sum(model.get_submodule(path).weight.numel() for path in nearest)
    return {
        "family": family,
        "recipe": options.recipe,
        "bits": options.bits,
        "share": weights / packed.qaig_report.coverage.packed,
        **found,
        "ratio": found["after"] / found["before"],
    }


def own_rank_only(self: RowFinder, sample: int, x: Tensor, rows: Any = RowFinder.rows) -> Rows | None:
    """Stands for `RowFinder.rows`: finds nothing where a linear's input has another rank than its block's."""
    entering = hidden_states(self.inputs.full[sample])
    is_linear = isinstance(self.block.get_submodule(self.group.linears[0]), nn.Linear)
    return None if is_linear and entering is not None and x.ndim != entering.ndim else rows(self, sample, x)


def other_text(sample: Sample, generator: torch.Generator) -> Sample:
    """Returns a sample with other tokens of text, and the same pictures."""
    ids = sample["input_ids"]
    drawn = torch.randint(FIRST_TEXT, 300, ids.shape, generator=generator)
    return {**sample, "input_ids": torch.where(ids >= FIRST_TEXT, drawn, ids)}


@torch.no_grad()
def logits_of(model: Any, sample: Sample) -> Tensor:
    """Returns the logits of a sample."""
    decoder = DecoderInputs.of(model)
    inputs = decoder(sample) if decoder else {name: value for name, value in sample.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Returns ‖found - expected‖² / ‖expected‖² over all samples."""
    difference = sum(float((ours - theirs).square().sum()) for ours, theirs in zip(found, expected))
    return difference / sum(float(theirs.square().sum()) for theirs in expected)


if __name__ == "__main__":
    main()
