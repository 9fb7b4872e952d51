"""Finds foldable groups of a block by running it: which linears share an input, and what can absorb 1/E.

Nothing is read from class names, attribute names or the config. A copy of the block gets random weights. Structure does
not depend on them, and a zero gate or a dead channel of the trained ones would hide it.

Each candidate producer's channels are scaled by known factors. The ratio of the linears' input to its former value
shows which channel every column comes from. A hypothesis is tested by folding a fresh random E. That must leave
unchanged what the block returns (and what it leaves in its arguments), while scaling the linears alone must change it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.experts_module import LinearExperts
from .fold import Group, absorb, fold
from .trace import Read, Trace, fresh, input_of, random_twin, record, restored, tensors

LOG_RANGE = math.log(2.0)  # E is drawn from [1/2, 2]
CONSTANT = 1e-3  # a ratio is constant if its residual over tokens is below this part of the column's norm
UNCHANGED = 1e-4  # a fold may change the output by this much (fp32 rounding gives about 1e-6; see _distance) …
PART_OF_CONTROL = 1e-3  # … and by this part of what scaling the linears alone does (a wrong column gives 5e-3)
DEAD = 1e-4  # a column is dead in this call if its norm is below this part of the largest
MAX_REPEAT = 16  # heads that may share one key-value head in a fused projection
MAX_RUNS = 4  # how many runs of a linear in one call are calibrated on


def find_groups(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, seed: int = 0) -> list[Group]:
    """Finds the equalization groups of a block from one captured call.

    Args:
        block: A decoder or encoder layer. It is not touched; its parameters may even be on the meta device.
        args: Positional arguments of one call of `block`; floating tensors are used as fp32 copies. 20 to 300 tokens
            will do.
        kwargs: Its arguments by name.
        seed: Of the random weights and scales.

    Returns:
        Groups in execution order, then one for each linear that this call runs several times. A linear that it does not
        run is in none of them, and neither is one of a stack of experts. A group that nothing can absorb a scale for
        has `producer=None`.
    """
    device = next((t.device for t in tensors((args, dict(kwargs)))), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)  # the CPU's: the same groups on every device
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        twin = random_twin(block, generator, device)

        def run() -> Any:
            call_args, call_kwargs = fresh((args, dict(kwargs)))
            return twin(*call_args, **call_kwargs), call_args, call_kwargs  # a block may also write to its arguments

        trace = record(twin, run)
        experts = tuple(f"{name}." for name, module in twin.named_modules() if isinstance(module, LinearExperts))
        reads = [read for read in trace.reads if not read.linears[0].startswith(experts)]
        for name in [name for name in trace.first_run if name.startswith(experts)]:
            del trace.first_run[name]
        found = [_group_of(read, trace, twin, run, generator) for read in reads]
        repeated = {name: runs for name, runs in trace.repeated.items() if not name.startswith(experts)}
        return found + [_alone(name, twin.get_submodule(name), runs) for name, runs in repeated.items()]


def _alone(name: str, linear: nn.Module, runs: int) -> Group:
    """Makes the group of a linear that runs several times: what it reads in all its runs is calibrated on."""
    assert isinstance(linear, nn.Linear)
    return Group((name,), name, None, (-1,) * linear.in_features, runs=min(runs, MAX_RUNS))


def _group_of(read: Read, trace: Trace, block: nn.Module, run: Callable[[], Any], generator: torch.Generator) -> Group:
    """Tries producers from the nearest backwards; takes the first that feeds every column, else the one with most."""
    in_features = read.x.shape[-1]
    names = tuple(read.linears)
    best = Group(names, _common_ancestor(names, trace.ran), None, (-1,) * in_features)
    first_linear = block.get_submodule(names[0])
    for name, step in sorted(trace.first_run.items(), key=lambda item: -item[1]):
        if step >= read.step or name == "":
            continue
        producer = block.get_submodule(name)
        for rows, plus_one in _hypotheses(producer, in_features):
            channels = _channel_map(producer, rows, plus_one, first_linear, read.x, run, generator)
            if channels is None or sum(c >= 0 for c in channels) <= sum(c >= 0 for c in best.channels):
                continue
            group = Group(names, best.module, name, channels, plus_one)
            if _holds(group, name, trace.output, block, run, generator):
                best = group
                if min(channels) >= 0:
                    return best
    return best


def _hypotheses(producer: nn.Module, in_features: int) -> Iterator[tuple[Tensor, bool]]:
    """Yields sets of output rows that may be the source of a tensor with `in_features` columns, likeliest first."""
    size = len(producer.get_parameter("weight"))
    rows = torch.arange(size)
    if in_features % size == 0:
        yield rows, False
        if not isinstance(producer, nn.Linear):
            yield rows, True
    if not isinstance(producer, nn.Linear):
        return
    if size <= in_features:  # a fused key and value projection
        parts = [size // 2] if size % 2 == 0 and in_features % (size // 2) == 0 else []
    else:
        parts = [in_features // k for k in range(1, MAX_REPEAT + 1) if in_features % k == 0]
        parts = [m for m in parts if m < size and size % m == 0]
    for m in parts:
        yield rows[-m:], False
        yield rows[:m], False
    if size > in_features:  # interleaved by head: [heads, parts, head_dim]
        values = {in_features, (size - in_features) // 2}
        for m in sorted((m for m in values if m > 0 and in_features % m == 0), reverse=True):
            for heads in range(2, m + 1):
                if m % heads == 0 and size % heads == 0:
                    yield rows.view(heads, -1)[:, -(m // heads) :].flatten(), False
                    yield rows.view(heads, -1)[:, : m // heads].flatten(), False


def _channel_map(
    producer: nn.Module,
    rows: Tensor,
    plus_one: bool,
    linear: nn.Module,
    x: Tensor,
    run: Callable[[], Any],
    generator: torch.Generator,
) -> tuple[int, ...] | None:
    """Maps each column of `linear`'s input to the row of `producer` it is proportional to (-1: none of `rows`).

    Each row gets a code of two digits; in run d its factor is the level of digit d, and no level is 1. Levels are far
    apart compared with rounding errors, which two random factors per row would not be at 20,000 rows.

    Returns None if a column is neither proportional to one of the rows nor untouched by all, or none is touched.
    """
    device = x.device
    base = max(4, 2 * math.ceil(math.sqrt(len(rows)) / 2))  # even: the levels lie on both sides of 1
    code = torch.randperm(base * base, generator=generator)[: len(rows)].to(device)
    row_of_code = torch.full((base * base,), -2, device=device)
    row_of_code[code] = rows.to(device)
    spacing = 2 * LOG_RANGE / base
    found = torch.zeros(x.shape[-1], dtype=torch.long, device=device)
    moved = torch.zeros(2, x.shape[-1], dtype=torch.bool, device=device)
    dead = torch.zeros(x.shape[-1], dtype=torch.bool, device=device)
    for d, digit in enumerate((code // base, code % base)):
        scale = torch.ones(len(producer.get_parameter("weight")), device=device)
        scale[rows.to(device)] = ((digit + 0.5) * spacing - LOG_RANGE).exp()
        with restored(producer):
            absorb(producer, scale, plus_one=plus_one)
            scaled = input_of(linear, run)
        if scaled is None or scaled.shape != x.shape:  # tokens were routed elsewhere
            return None
        ratio, residual, dead = _ratio(x, scaled)
        log_scale = -ratio.log()  # NaN for a negative ratio, which then fits nothing
        level = (log_scale + LOG_RANGE) / spacing - 0.5
        nearest = level.round().clamp(0, base - 1)
        moved[d] = ~(log_scale.abs() < spacing / 4)
        fits = (residual < CONSTANT) & (~moved[d] | ((level - nearest).abs() < 0.25))
        if not (fits | dead).all() or not (moved[d] & ~dead).any():
            return None
        found = found * base + nearest.nan_to_num().long()
    channels = row_of_code[found]
    channels[~moved.any(0)] = -1
    if ((moved[0] != moved[1]) & ~dead).any() or (channels[~dead] == -2).any():
        return None
    return _fill_dead(channels.tolist(), dead.tolist(), set(rows.tolist()))


def _ratio(x: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the least-squares ratio of `scaled` to `x` per column, its relative residual, and the zero columns."""
    x, scaled = (t.reshape(-1, t.shape[-1]).double() for t in (x, scaled))
    rows = torch.isfinite(x).all(-1) & torch.isfinite(scaled).all(-1)  # fully masked tokens can be NaN
    x, scaled = x[rows], scaled[rows]
    square = x.square().sum(0)
    dead = square <= DEAD**2 * square.max() if len(x) else torch.ones_like(square, dtype=torch.bool)
    square = square.masked_fill(dead, 1.0)
    ratio = (x * scaled).sum(0) / square
    residual = ((scaled - ratio * x).square().sum(0) / square).sqrt()
    return ratio.masked_fill(dead, 1.0), residual, dead


def _fill_dead(channels: list[int], dead: list[bool], rows: set[int]) -> tuple[int, ...] | None:
    """Gives columns without a ratio (zero in this call) the channel that their neighbours imply, if they agree."""
    guesses: list[set[int]] = [set() for _ in channels]
    for order, step in ((range(len(channels)), 1), (range(len(channels) - 1, -1, -1), -1)):
        guess: int | None = None
        for column in order:
            if not dead[column]:
                guess = channels[column]
            elif guess is not None:
                guess = guess + step if guess >= 0 else -1
                guesses[column].add(guess if guess in rows else -1)
    if any(len(g) != 1 for g, is_dead in zip(guesses, dead) if is_dead):
        return None
    return tuple(g.pop() if is_dead else c for c, g, is_dead in zip(channels, guesses, dead))


def _holds(
    group: Group,
    producer: str,
    output: list[Tensor],
    block: nn.Module,
    run: Callable[[], Any],
    generator: torch.Generator,
) -> bool:
    """Whether the output survives a fold of random E, and does not survive it with the producer left out."""
    channels = torch.tensor(group.channels, device=output[0].device)
    draw = torch.rand(int(channels.max()) + 1, generator=generator).to(channels.device)
    scale = torch.where(channels < 0, 1.0, ((2 * draw - 1) * LOG_RANGE).exp()[channels.clamp(min=0)])

    def change(skip: tuple[str, ...]) -> float:
        with restored(*(block.get_submodule(name) for name in (*group.linears, producer))):
            fold(block, group, scale, skip=skip)
            return _distance(tensors(run()), output)

    change_by_fold = change(())
    return change_by_fold < UNCHANGED and change_by_fold < PART_OF_CONTROL * change((producer,))


def _distance(new: list[Tensor], old: list[Tensor]) -> float:
    """Returns the largest change of an element, relative to its size plus the mean size of its tensor."""
    worst = 0.0
    for a, b in zip(new, old, strict=True):
        if b.is_floating_point() and b.numel():
            a, b = a.nan_to_num(), b.nan_to_num()
            worst = max(worst, float(((a - b).abs() / (b.abs() + b.abs().mean()).clamp(min=1e-30)).max()))
    return worst


def _common_ancestor(names: tuple[str, ...], ran: set[str]) -> str:
    """Returns the lowest module above (or at) all `names` that has a forward of its own: a ModuleList never runs."""
    paths = [name.split(".") for name in names]
    shared = []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    while shared and ".".join(shared) not in ran:
        shared.pop()
    return ".".join(shared)
