"""Estimates, from shapes alone, what quantizing a model takes: memory, disk, and arithmetic by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..config import QAIGConfig
from ..config.budget import NEAREST
from ..config.size import parse_memory
from ..formats.scheme import MIN_GROUP_SIZE
from ..nn.experts_layout import ExpertsLayout, find_experts
from ..structure import find_decoder_blocks
from .coverage import Coverage

FLOAT32 = 4
MERGED_TOKENS = 8192
"""Tokens of several samples that are on the device at once."""
GPTQ_ELEMENTS = 2**28
"""Elements of a weight, with all grids that are tried, that GPTQ works on at once; three tensors of them."""
FORWARDS = 5
"""Passes of the samples through a block: of both models, to what its groups read, and by those held back."""
LEARNED_PASSES = 8
"""What a step of learned rounding costs, in forward passes of its samples: forwards, backwards, a weight rebuilt."""
LEARNED_BATCH = 8
LEARNED_BYTES = 20
"""What learning holds of a weight: what GPTQ rounded, the same in steps, its offset, its value and its gradient."""
END_TO_END_PASSES = 6
"""What a step of learning end to end costs, likewise: forwards, again for the gradient, and backwards."""
END_TO_END_BATCH = 4
END_TO_END_STEPS = 2
"""Steps for each step of learned rounding."""
OWN_ANSWERS = 7
"""Answers that the full model draws to each question: each token is computed once to draw it, and once to predict."""
END_TO_END_TOKENS = 256
"""Most tokens of a sample whose hidden states at the head are kept."""
SCALE_BYTES = 24
"""What learning holds of a scale: itself, its factor, its value, its gradient, and two means of it."""
GRADIENT_PASSES = 4
"""What the costs of a width take, in forward passes: forwards, again for the gradient, and backwards."""
GRIDS = 10
"""Grids that GPTQ is tried on, with a recipe that clips."""
DAMPINGS_TRIED = 8
"""Hessians that are factored to choose a damping."""


@dataclass(frozen=True)
class Linears:
    """Weights of one shape in one block, of which each token uses `active`."""

    rows: int
    columns: int
    number: int
    active: float

    @property
    def weights(self) -> int:
        """Elements of all of them."""
        return self.rows * self.columns * self.number


@dataclass(frozen=True)
class CostEstimate:
    """What quantizing a model takes. Sizes are in bytes.

    Attributes:
        checkpoint: what is read, or downloaded, in full precision.
        result: what is saved.
        memory: most anonymous memory of the process, without `device_memory`. Under a budget the rounding errors of a
            width are held for all weights. Weights are mapped from files, whose
            pages come on top where there is room. So is a model packed in a `work_dir`, until it is run.
        device_memory: the most on the accelerator; without one it is anonymous memory, too.
        disk: new files: the result, what `work_dir` keeps of it and of the errors of widths, experts that are joined on
            loading, and what is learned of experts beyond `expert_memory`.
        flop: multiplications and additions by part of the run.
    """

    checkpoint: int
    result: int
    memory: int
    device_memory: int
    disk: int
    flop: dict[str, float]


def estimate_costs(model: nn.Module, config: QAIGConfig, coverage: Coverage, tokens: int) -> CostEstimate:
    """Estimates what a run takes.

    Args:
        model: on the meta device.
        config: of the run.
        coverage: from [`list_schemes`], with its `stored_bits`.
        tokens: of a sample, its pictures' included.
    """
    blocks, stacks = find_decoder_blocks(model), find_experts(model)
    each = [_linears(path, block, stacks) for path, block in blocks.items()]
    block = max(each, key=lambda linears: sum(one.weights for one in linears))
    checkpoint, result = coverage.whole.full // 8, coverage.whole.saved // 8
    itemsize = next(next(iter(blocks.values())).parameters()).element_size()
    count = config.num_samples * tokens if config.recipe.calibrates or config.budget is not None else 0
    has_work_dir = config.calibration.work_path is not None
    # Most models' experts are joined on loading, so that they are written once more.
    joined = sum(one.weights for linears in each for one in linears if one.number > 1) * itemsize
    streams = 2 * count * _hidden(block) * itemsize
    weights = sum(one.weights for one in block)
    device_memory = _on_device(block, weights, itemsize, config, count)
    recipe = config.recipe
    sums_only = recipe.rounding != "nearest" and recipe.token_weights == "uniform" and recipe.equalization == "none"
    gathered = 0 if sums_only else 2 * count * max(one.columns for one in block) * itemsize
    kept = 0 if has_work_dir else result
    work = result * (2 if stacks else 1) if has_work_dir else 0  # packed experts are joined, too
    flop = _arithmetic(each, config, count)
    states, in_memory, in_files = _end_to_end(each, config, tokens, itemsize)
    errors = itemsize * _errors_kept(config, coverage)
    memory = max(errors + streams, kept + states + max(streams + gathered + FLOAT32 * weights, in_memory))
    disk = result + work + joined + max(_learned(block, config)[1], in_files)
    if config.budget is not None and config.budget.cost != NEAREST and has_work_dir:
        disk += errors * len(config.budget.candidates)
    return CostEstimate(checkpoint, result, memory, device_memory, disk, flop)


def _errors_kept(config: QAIGConfig, coverage: Coverage) -> int:
    """Returns how many elements the rounding errors have that a budget keeps in memory at once."""
    if config.budget is None:
        return 0
    return coverage.to_choose - (coverage.packed if config.budget.cost == NEAREST else 0)


def _hidden(block: list[Linears]) -> int:
    return min(one.columns for one in block)


def _linears(path: str, block: nn.Module, stacks: Mapping[str, ExpertsLayout]) -> list[Linears]:
    found = []
    for name, module in block.named_modules():
        layout = stacks.get(f"{path}.{name}")
        if layout is not None:
            routed = min(_routed(block), layout.num_experts)
            for projection in layout.projections:
                found.append(Linears(*layout.shape(projection), layout.num_experts, routed))
        elif isinstance(module, nn.Linear) and min(module.in_features, module.out_features) >= MIN_GROUP_SIZE:
            found.append(Linears(module.out_features, module.in_features, 1, 1.0))
    return found


def _routed(block: nn.Module) -> int:
    """Experts of a token: what the router's module, or the block's own configuration, calls so."""
    for module in block.modules():
        for name in ("top_k", "num_experts_per_tok"):
            value = getattr(module, name, None)
            if isinstance(value, int):
                return value
    return 8


def _on_device(block: list[Linears], weights: int, itemsize: int, config: QAIGConfig, count: int) -> int:
    copies = weights * (itemsize + FLOAT32)
    if not count:
        return copies
    columns = max(one.columns for one in block)
    tokens = 3 * min(MERGED_TOKENS, count) * columns * FLOAT32
    if config.recipe.rounding == "nearest":
        return copies + weights * FLOAT32 + tokens
    grids = GRIDS if config.recipe.clipping else 1
    tried = max(min(one.rows * one.columns * grids, GPTQ_ELEMENTS) for one in block)
    rounding = 3 * columns**2 * FLOAT32 + max(3 * tried * FLOAT32, tokens)
    if config.recipe.validate:  # a damping is chosen: moments and input shift of both sets of samples, and two factors
        rounding = max(rounding, 6 * columns**2 * FLOAT32)
    return copies + max(rounding, _learned(block, config)[0])


def _learned(block: list[Linears], config: QAIGConfig) -> tuple[int, int]:
    """Returns the bytes that learned rounding holds of a block in memory, and in files."""
    if config.recipe.rounding != "learned":
        return 0, 0
    experts, limit = sum(one.weights for one in block if one.number > 1), config.calibration.expert_memory
    in_memory = LEARNED_BYTES * experts if limit is None else min(LEARNED_BYTES * experts, parse_memory(limit))
    others = sum(one.weights for one in block) - experts
    return LEARNED_BYTES * others + in_memory, LEARNED_BYTES * experts - in_memory


def _end_to_end(each: list[list[Linears]], config: QAIGConfig, tokens: int, itemsize: int) -> tuple[int, int, int]:
    """Returns the bytes of kept hidden states, and what learning end to end holds of all blocks in memory and files."""
    if not config.recipe.end_to_end:
        return 0, 0, 0
    linears = [one for block in each for one in block]
    texts = config.num_samples * (1 + OWN_ANSWERS * config.recipe.own_answers)
    states = texts * min(tokens, END_TO_END_TOKENS) * _hidden(each[0]) * itemsize
    codes = sum(one.weights for one in linears) * (2 if config.bits == 8 else 1)
    groups = (one.weights // (one.columns if config.group_size == -1 else config.group_size) for one in linears)
    scales = SCALE_BYTES * sum(groups)
    return (states, scales, codes) if config.calibration.work_path is not None else (states, scales + codes, 0)


def _arithmetic(each: list[list[Linears]], config: QAIGConfig, count: int) -> dict[str, float]:
    """Returns multiplications and additions by part."""
    linears = [one for block in each for one in block]
    forward = 2.0 * count * sum(one.rows * one.columns * one.active for one in linears)
    recipe, flop = config.recipe, {}
    if not count:
        return {}
    widths = 0 if config.budget is None or config.budget.cost == NEAREST else len(config.budget.candidates)
    if config.budget is not None:
        flop["costs of widths"] = max(widths, 1) * GRADIENT_PASSES * forward
    if not recipe.calibrates:
        return flop
    flop["forward passes"] = FORWARDS * forward
    if recipe.equalization != "none":
        flop["search of scales"] = recipe.grid_points * forward
    if recipe.end_to_end:
        samples = min(END_TO_END_BATCH / max(config.num_samples, 1), 1.0)
        steps = END_TO_END_STEPS * recipe.steps * END_TO_END_PASSES * samples
        flop["learning end to end"] = (steps + 2 * OWN_ANSWERS * recipe.own_answers) * forward
    if recipe.rounding == "nearest":
        return flop
    moments = 2.0 * (2 if recipe.asymmetric else 1) * count
    readers = _inputs(each)
    flop["second moments"] = moments * sum(one.columns**2 * one.active for one in readers)
    grids = GRIDS if recipe.clipping else 1
    twice = 2 if recipe.validate else 1
    factors = sum(2.0 * one.columns**3 * one.number for one in readers)
    chosen = DAMPINGS_TRIED * sum(2.0 * one.columns**3 for one in readers if one.number == 1)
    rounding = sum((grids + 4.0 * bool(recipe.clipping)) * one.weights * one.columns for one in linears)
    flop["rounding"] = twice * (factors + rounding) + (chosen if recipe.validate else 0.0)
    if widths:
        flop["costs of widths"] += widths * (forward + flop["second moments"] + flop["rounding"])
    if recipe.rounding == "learned":
        samples = min(LEARNED_BATCH / max(config.num_samples, 1), 1.0)
        flop["learned rounding"] = recipe.steps * LEARNED_PASSES * samples * forward
    return flop


def _inputs(each: list[list[Linears]]) -> list[Linears]:
    """Returns one of the linears for each tensor that several read: those of one width and number, in one block.

    The output of attention is as wide as the hidden states in most models. It counts once more where four linears have
    that width.
    """
    found = []
    for block in each:
        widths: dict[tuple[int, int], list[Linears]] = {}
        for one in block:
            widths.setdefault((one.columns, one.number), []).append(one)
        for same in widths.values():
            tensors = 1 if same[0].number > 1 else max(1, round(len(same) / 2))
            found += same[:tensors]
    return found
