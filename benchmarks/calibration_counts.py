"""
What calibrating one block of a 7B VLM's language model asks of a GPU, counted on an accelerator that is not there.

    python benchmarks/calibration_counts.py > rows.jsonl

A JSON line a recipe: kernel launches, waits of the host for the device, bytes copied each way, bytes joined on the CPU,
arithmetic by kind, and the most bytes on the device. Shapes are those of 7B at `--width 1`; large tensors are allocated
and never written, as in `device_memory.py`. Counts are taken at two numbers of samples, and continued in a straight
line to `--scale-to` samples. `--check` counts a third number, and adds how far the line is from it.

A launch is an operation of torch that reads or writes a tensor on the device and is not a view. A GPU may launch
several kernels for one, or one for several: attention is counted in the parts that torch computes it in.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from typing import Any
from unittest.mock import patch

# device_memory loads the accelerator, which must come before torch is asked for one.
import torch
from device_memory import GROUP_SIZE, OutputError, ShapesOnly, aten, build, pretend, provenance, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.equalization import finder
from transformers_qaig.equalization.fold import Group
from transformers_qaig.plan.build import list_schemes, make_plan

RUNS = ("rtn", "gptq", "default", "best", "budget")
COUNTS = ("launches", "syncs", "to_device", "to_host", "joined_on_host", "flop_16", "flop_32", "flop_factor")
GROUPS = {
    "self_attn": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": (),
    "mlp": ("gate_proj", "up_proj"),
    "mlp.down_proj": (),
}
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--width", type=float, default=1.0, help="share of the model's widths and heads")
    parser.add_argument("--samples", type=int, nargs=2, default=[8, 16], help="the two numbers that are counted")
    parser.add_argument("--scale-to", type=int, default=128)
    parser.add_argument("--check", type=int, help="a third number of samples, which is counted, too")
    parser.add_argument("--tokens", type=int, default=1024, help="of a sample")
    parser.add_argument("--memory", type=float, default=139, help="GiB that the accelerator says are free")
    parser.add_argument("--compute", action="store_true", help="compute everything, for small widths")
    options = parser.parse_args()
    print(json.dumps(provenance() | {"machine": "pretended accelerator", "options": vars(options)}), flush=True)
    for run in options.runs:
        few, more = (counts_of(run, samples, options) for samples in options.samples)
        row = {"task": run, "samples": options.scale_to, "tokens": options.tokens, "width": options.width}
        row |= {name: line(few[name], more[name], options.samples, options.scale_to) for name in few}
        if options.check:
            third = counts_of(run, options.check, options)
            off = {n: line(few[n], more[n], options.samples, options.check) / v - 1 for n, v in third.items() if v}
            row["check"] = {name: round(value, 4) for name, value in off.items()}
        print(json.dumps(row), flush=True)


def line(few: float, more: float, samples: list[int], wanted: int) -> int:
    """Continues two counts in a straight line; what falls with more samples, such as waits in a search, stays."""
    slope = max((more - few) / (samples[1] - samples[0]), 0.0)
    return round(more + slope * (wanted - samples[1]))


def counts_of(run: str, samples: int, options: argparse.Namespace) -> dict[str, int]:
    """Counts one block: of a budget, what a second block adds to the costs of widths; else the second of two."""
    torch.manual_seed(0)
    levels = count(0, -1)
    with contextlib.ExitStack() as stack:
        free = int(options.memory * 2**30)
        stack.enter_context(patch.object(torch.accelerator, "get_memory_info", lambda *_: (free, free)))
        if not options.compute:
            stack.enter_context(patch.object(OutputError, "value", property(lambda _: float(next(levels)))))
            stack.enter_context(patch.object(finder, "find_groups", known_groups))
            stack.enter_context(ShapesOnly())
        if run != "budget":
            return _block_of(run, samples, options)
        one, two = (_budget(layers, samples, options) for layers in (1, 2))
        return {name: two[name] if name == "peak_bytes" else two[name] - one[name] for name in two}


def known_groups(block: Any, *_: Any, **__: Any) -> list[Group]:
    """Returns the groups of a block: they cannot be found by values that were not computed."""
    found = []
    for module, names in GROUPS.items():
        linears = tuple(f"{module}.{name}" for name in names) or (module,)
        found.append(Group(linears, module, None, (-1,) * block.get_submodule(linears[0]).in_features))
    return found


def _model(layers: int, samples: int, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    shapes = {"width": options.width, "layers": layers, "tower_layers": 1, "picture": 28, "tokens": options.tokens}
    made = argparse.Namespace(**shapes, vocabulary=2048, shapes_only=not options.compute)
    gc.collect()
    model = build(made)
    return model, *zip(*(sample(model, made) for _ in range(samples)))


def _block_of(run: str, samples: int, options: argparse.Namespace) -> dict[str, int]:
    model, inputs, answers = _model(2, samples, options)
    calibration = {"device": pretend.DEVICE}
    config = QAIGConfig(bits=3, recipe=run, num_samples=samples, group_size=GROUP_SIZE, calibration=calibration)
    plan, coverage = make_plan(model, config)
    pipeline = import_module("transformers_qaig.calibration.pipeline")
    ends: list[dict[str, int]] = []
    with Counts() as counts:
        install = pipeline.install

        def installed(*arguments: Any) -> None:
            install(*arguments)
            ends.append(counts.taken())
            pretend.reset_peak()

        with patch.object(pipeline, "install", installed):
            read = config.recipe.calibrates
            data = CalibrationData.of(inputs, answers) if read else CalibrationData()
            pipeline.calibrate(model, plan, coverage, data, config)
    before, after = ends[-2:]
    return {name: after[name] - (0 if name == "peak_bytes" else before[name]) for name in after}


def _budget(layers: int, samples: int, options: argparse.Namespace) -> dict[str, int]:
    model, inputs, answers = _model(layers, samples, options)
    budget, calibration = BitBudget(3.5, candidates=(2, 3, 4), cost="fisher"), {"device": pretend.DEVICE}
    config = QAIGConfig(budget=budget, num_samples=samples, group_size=GROUP_SIZE, calibration=calibration)
    choices, _ = list_schemes(model, config)
    costs = import_module("transformers_qaig.quantizer.bit_costs.measure")
    pretend.reset_peak()
    with Counts() as counts:
        costs.measure_costs(model, choices, CalibrationData.of(inputs, answers), config)
    return counts.taken()


class Counts(TorchDispatchMode):
    """Counts, within the context, what operations ask of the device."""

    def __init__(self) -> None:
        super().__init__()
        self._found: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    def taken(self) -> dict[str, int]:
        """The counts so far, and the most bytes at once on the device."""
        return {**self._found, "peak_bytes": pretend.peak_bytes()}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        read, made = (list(_tensors(tree)) for tree in ((args, kwargs), out))
        there = [tensor.device.type == pretend.DEVICE for tensor in (*read, *made)]
        if func is aten.cat.default and not any(there):
            self._found["joined_on_host"] += made[0].nbytes
        if func in (aten._to_copy.default, aten.copy_.default):
            to, source = made[0], read[-1]
            if to.device != source.device:
                self._found["to_device" if to.device.type == pretend.DEVICE else "to_host"] += source.nbytes
        if not any(there):
            return out
        self._found["launches"] += func is not aten._local_scalar_dense.default
        self._found["syncs"] += func in WAITS or (func is aten.index.Tensor and _is_masked(args))
        kind, flop = _arithmetic(func, args, kwargs, read, out)
        if flop:
            self._found[kind] += flop
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_masked(args: Any) -> bool:
    return any(tensor.dtype == torch.bool for tensor in _tensors(args[1]))


def _arithmetic(func: Any, args: Any, kwargs: Any, read: list[Tensor], out: Any) -> tuple[str, int]:
    """Multiplications and additions of products and factorizations: their kind, and how many."""
    name = func.overloadpacket.__name__
    if name.startswith(("linalg_cholesky", "linalg_solve", "_linalg_solve", "linalg_lu")):
        size, batch = read[0].shape[-1], math.prod(read[0].shape[:-2])
        if "triangular" in name:
            return "flop_factor", batch * size**2 * read[1].shape[-1]
        return "flop_factor", batch * size**3 // 3 * (1 if "cholesky" in name else 2)
    if func.overloadpacket not in flop_registry:
        return "", 0
    kind = "flop_32" if read[-1].dtype == torch.float32 else "flop_16"
    return kind, int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))


if __name__ == "__main__":
    sys.exit(main())
