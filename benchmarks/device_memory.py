"""
Device memory that calibrating a VLM of Qwen2.5-VL-7B's shapes takes, counted on an accelerator that is not there.

    python benchmarks/device_memory.py --width 0.25 > results.jsonl

A JSON line per phase: the most bytes of tensors at once on the device, and those that were there when it began. Few
blocks do: with their number only the samples that wait grow, and these hold nothing there. The accelerator
(`tools/pretend_accelerator`) computes in the CPU's memory with the CPU's kernels. So what kernels need inside is not
counted, nor what a GPU's allocator loses by rounding up and by gaps. Attention is counted as if its matrix were stored;
a GPU's fused kernels store none.

Full width is too much arithmetic for a CPU. With `--shapes-only` large tensors on the device are allocated, counted and
never written; every candidate counts as better than the one before, so that nothing is left out.
At a width of 0.04 both ways count the same bytes, but for 4 % more in the gradients' pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.pretend_accelerator import pretend

pretend.load()  # before anything asks torch for its accelerator

import torch  # noqa: E402
from ledger import provenance  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only  # noqa: E402
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from transformers_qaig import BitBudget, QAIGConfig  # noqa: E402
from transformers_qaig.data.calibration_data import CalibrationData  # noqa: E402
from transformers_qaig.execution.block_outputs import OutputError  # noqa: E402
from transformers_qaig.plan.build import list_schemes, make_plan  # noqa: E402
from transformers_qaig.rounding import gptq  # noqa: E402

RUNS = ("default", "fisher")
HEAD_DIM, GROUP_SIZE, PATCH, VISION_HEAD_DIM = 128, 128, 14, 80
IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
LARGE = 2**15
"""Elements of a tensor from which `--shapes-only` leaves it unwritten."""
REUSED = 2**25
"""Bytes of a tensor below which its memory may have been used before."""
aten = torch.ops.aten
AS_IT_IS = (aten.detach.default, aten._unsafe_view.default, aten._local_scalar_dense.default)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--width", type=float, default=1.0, help="share of the model's widths, heads and vocabulary")
    parser.add_argument("--layers", type=int, default=1, help="of the language model, of 28")
    parser.add_argument("--tower-layers", type=int, default=32, help="of the tower, of 32")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="of a sample, its picture's included")
    parser.add_argument("--picture", type=int, default=448, help="pixels of a side, a multiple of 28")
    parser.add_argument("--shapes-only", action="store_true", help="compute nothing large")
    options = parser.parse_args()
    print(json.dumps(provenance() | {"machine": "pretended accelerator", "options": vars(options)}), flush=True)
    torch.manual_seed(0)
    levels = count(0, -1)
    for run in options.runs:
        with ExitStack() as stack:
            if options.shapes_only:
                better = property(lambda _: float(next(levels)))
                stack.enter_context(patch.object(OutputError, "value", better))
                stack.enter_context(patch.object(gptq._Columns, "take", largest_product))
                stack.enter_context(ShapesOnly())
            measure(run, options)


def measure(run: str, options: argparse.Namespace) -> None:
    """Print what each phase of one run needs."""
    gc.collect()
    model = build(options)
    samples, answers = zip(*(sample(model, options) for _ in range(options.samples)))
    settings = {"num_samples": options.samples, "group_size": GROUP_SIZE, "calibration": {"device": pretend.DEVICE}}
    phases = Phases(run)
    if run == "default":
        config = QAIGConfig(bits=3, **settings)
        plan, coverage = make_plan(model, config)
        calibration = import_module("transformers_qaig.calibration.pipeline")
        with phases.of(calibration, "quantize_target", "first forward passes", "block"):
            calibration.calibrate(model, plan, coverage, CalibrationData.of(samples, answers), config)
    else:
        config = QAIGConfig(budget=BitBudget(3.5, candidates=(3, 4), cost="fisher"), **settings)
        choices, _ = list_schemes(model, config)
        costs = import_module("transformers_qaig.quantizer.bit_costs.measure")
        with phases.of(costs, "costs_of", "rounding at each width", "gradients"):
            costs.measure_costs(model, choices, CalibrationData.of(samples, answers), config)


class Phases:
    """Prints a line at each end of a phase."""

    def __init__(self, run: str):
        self._run = run
        self._begin()

    def _begin(self) -> None:
        pretend.reset_peak()
        self._start = pretend.bytes_in_use()

    def _end(self, phase: str) -> None:
        row = {"task": self._run, "phase": phase, "peak_bytes": pretend.peak_bytes(), "start_bytes": self._start}
        print(json.dumps(row), flush=True)
        self._begin()

    @contextmanager
    def of(self, module: Any, name: str, before: str, during: str) -> Iterator[None]:
        """Within the context, calls of a function are phases, and so is what comes before each of them."""
        function = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._end(before)
            result = function(*args, **kwargs)
            self._end(during)
            return result

        with patch.object(module, name, call):
            yield


def build(options: argparse.Namespace) -> nn.Module:
    """The model, in bfloat16 on the CPU: random values, of one pool, also where rotary frequencies belong."""
    heads, vision_heads = max(round(28 * options.width), 1), max(round(16 * options.width), 1)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": HEAD_DIM * heads,
            "intermediate_size": GROUP_SIZE * round(148 * options.width),
            "num_hidden_layers": options.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(round(4 * options.width), 1),
            "vocab_size": getattr(options, "vocabulary", round(152064 * options.width)),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": options.tower_layers,
            "hidden_size": VISION_HEAD_DIM * vision_heads,
            "num_heads": vision_heads,
            "intermediate_size": round(3420 * options.width),
            "out_hidden_size": HEAD_DIM * heads,
        },
        tie_word_embeddings=False,
        **IDS,
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    pool = torch.randn(1 << 20) * 0.02
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            value = unwritten(tensor, "cpu")
            flat = value.view(-1)
            written = 0 if options.shapes_only and flat.numel() >= LARGE else flat.numel()
            for start in range(0, written, pool.numel()):
                flat[start : start + pool.numel()] = pool[: flat.numel() - start]
            if isinstance(tensor, nn.Parameter):
                setattr(module, name, nn.Parameter(value, requires_grad=False))
            else:
                setattr(module, name, value)
    return model.eval()


def sample(model: nn.Module, options: argparse.Namespace) -> tuple[dict[str, Tensor], Tensor]:
    """A conversation about a picture, and which tokens are the answer's: the last quarter of the text."""
    side = options.picture // PATCH
    pictured = side * side // 4
    text = options.tokens - pictured - 2
    if text < 4:
        raise SystemExit(f"--tokens {options.tokens} do not hold the {pictured} tokens of a picture, and text.")
    words = torch.randint(10, model.config.text_config.vocab_size, (text,))
    vision = torch.tensor([IDS["vision_start_token_id"], *[IDS["image_token_id"]] * pictured])
    ids = torch.cat([vision, torch.tensor([IDS["vision_end_token_id"]]), words])[None]
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -(text // 4) :] = True
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IDS["image_token_id"]).long(),
        "pixel_values": torch.randn(side * side, 3 * 2 * PATCH**2).to(torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }
    return inputs, answer


def largest_product(columns: Any, first: int, last: int) -> None:
    """Of rounding column by column, what needs most memory: letting the second half make up for the first."""
    middle = (first + last) // 2
    columns.remaining[middle:last] -= columns.factor[first:middle, middle:last].T @ columns.errors[first:middle]


class ShapesOnly(TorchDispatchMode):
    """
    Within the context, what would make or change a large tensor on the device only allocates it: pages that nobody
    writes take no memory. Questions about large tensors are answered so that the work goes on.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.multinomial.default:  # of probabilities that were not computed
            return func(torch.ones_like(args[0]), *args[1:], **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        home = torch.device(kwargs.get("device") or (inputs[0].device if inputs else "cpu"))
        devices = {home.type, *(tensor.device.type for tensor in inputs)}
        if pretend.DEVICE not in devices or func.is_view or func in AS_IT_IS:
            return func(*args, **kwargs)
        if func is aten.mean.default:  # of a diagonal that was not computed
            return func(*args, **kwargs) + 1
        large = any(tensor.numel() >= LARGE for tensor in inputs)
        written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        changed = kwargs.get("out", next((arg for arg, is_written in zip(args, written) if is_written), None))
        if changed is not None:
            if not large:
                return func(*args, **kwargs)
            return changed if func._schema.returns else None
        found = self._shapes_of(func, args, kwargs)
        if found is None:
            return func(*args, **kwargs)
        if not large and not any(leaf.numel() >= LARGE for leaf in tree_leaves(found)):
            return func(*args, **kwargs)

        def made(like: Tensor) -> Tensor:
            if like.numel() >= LARGE and home.type != "cpu":
                return unwritten(like, home)
            if func.overloadpacket is aten.all:
                return torch.ones(like.shape, dtype=like.dtype, device=home)
            return torch.zeros(like.shape, dtype=like.dtype, device=home)  # memory that is not touched

        return tree_map_only(Tensor, made, found)

    _known: ClassVar[dict[Any, Any]] = {}

    def _shapes_of(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What `func` returns, without values; None if how large that is depends on values."""
        leaves, tree = tree_flatten((args, kwargs))
        key = (func, tree, *((a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else str(a) for a in leaves))
        if key not in self._known:
            shapes, named = tree_map_only(Tensor, _on_meta, (args, kwargs))
            if "device" in named:
                named["device"] = torch.device("meta")
            try:
                self._known[key] = func(*shapes, **named)
            except (NotImplementedError, RuntimeError):
                self._known[key] = None
        return self._known[key]


def unwritten(like: Tensor, device: torch.device | str) -> Tensor:
    """A tensor as `like`. Large memory is new, hence zero; what is small may have been used, and hold NaN."""
    tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    return tensor if tensor.nbytes >= REUSED else tensor.zero_()


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


if __name__ == "__main__":
    main()
