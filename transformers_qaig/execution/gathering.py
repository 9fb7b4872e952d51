"""Gathers what a group of linears reads of every sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..distributed import Terms
from ..equalization.fold import Group
from ..utils.finite import is_finite
from .block_outputs import is_finite_where
from .exclusions import NotFinite
from .group_inputs import NO_SAMPLE, UNKNOWN_ROWS, GroupInputs, NotReached, enter, merge
from .layer_inputs import TargetInputs, map_tensors
from .spread import Entered, spread
from .token_rows import RowFinder


def gather_group_inputs(
    original: nn.Module,
    group: Group,
    blocks: tuple[nn.Module, nn.Module],
    inputs: TargetInputs,
    samples: Sequence[int],
) -> Terms[GroupInputs]:
    """Collects the samples at a sub-block's entrance, in both models.

    Args:
        original: the block in fp32.
        group: which sub-block.
        blocks: the block in full precision, and quantized so far.
        inputs: what they are called with.
        samples: which ones. Those that do not get there are left out; at least one does.

    Returns:
        their inputs, each on the rank that has the sample, or that runs the row it is in. What the linears read is seen
        as `[B, T, C]` where its rows are the sample's tokens in order. Where it has another rank, it is one sequence of
        all its rows.

    Raises:
        NotReached: no sample gets there, or all that do have padding that cannot be found among the rows.
        NotFinite: a real token of a sample is not finite there. (One of the padding is set to zero.)
    """
    if group.runs > 1:
        return _of_all_runs(original, group, blocks, inputs, samples)
    if inputs.ranks.size == 1:
        entered = list(_entered(group, blocks, inputs, RowFinder(blocks[0], group, inputs, samples)))
        return Terms(merge(original, group, entered))
    mine = [sample for sample in samples if sample in inputs.full]
    finder = RowFinder(blocks[0], group, inputs, mine)

    def enter_local() -> Entered:
        try:
            found = list(_entered(group, blocks, inputs, finder))
        except NotReached as none:
            return Entered((), str(none))
        return Entered(found, layout=vars(finder).get("layout", "not looked for"))

    return spread(original, group, enter_local, samples, inputs.ranks)


def _entered(
    group: Group, blocks: tuple[nn.Module, nn.Module], inputs: TargetInputs, finder: RowFinder
) -> Iterator[GroupInputs]:
    """Yields the finder's samples at a sub-block's entrance, finite and on the CPU."""
    for one in entering(group, blocks, inputs, finder):
        finite = finite_inputs(one, group)
        moved = map_tensors(lambda t: t.cpu(), (finite.hidden, finite.hidden_q, finite.args, finite.kwargs))
        yield replace(finite, hidden=moved[0], hidden_q=moved[1], args=moved[2], kwargs=moved[3])


def entering(
    group: Group, blocks: tuple[nn.Module, nn.Module], inputs: TargetInputs, finder: RowFinder
) -> Iterator[GroupInputs]:
    """Yields each of the finder's samples at a sub-block's entrance, in both models, on their device. See above.

    Values may be not finite: see [`finite_inputs`].

    Raises:
        NotReached: as above, at the end.
    """
    calls = inputs.full, inputs.quantized
    reason, found = NO_SAMPLE, False
    for s in finder.samples:
        try:
            (x, args, kwargs), (x_q, _, _) = (enter(b, group, c[s]) for b, c in zip(blocks, calls))
        except NotReached:
            continue
        rows = finder.rows(s, x)
        if rows is None:
            reason = UNKNOWN_ROWS
            continue
        if x.shape != x_q.shape:  # tokens are routed otherwise in the quantized model
            x = x_q
        shape, found = rows.mask.shape, True
        # A tensor that is among the arguments, too, stays one tensor with it.
        x, x_q = (t if t.shape[:-1] == shape else t.reshape(*shape, t.shape[-1]) for t in (x, x_q))
        lengths = [x.shape[1]] * x.shape[0]
        yield GroupInputs([s], x, x_q, rows.mask, lengths, args, kwargs, tokens=[rows.tokens])
    if not found:
        raise NotReached(reason)


def finite_inputs(one: GroupInputs, group: Group) -> GroupInputs:
    """Returns one sample's inputs, with zeros where a token of the padding is not finite.

    Raises:
        NotFinite: a real token is not finite.
    """
    (sample,), what = one.samples, f"hidden states that {group.linears[0]} reads"
    x = _finite(one.hidden, one.mask, sample, f"the full-precision {what}")
    x_q = _finite(one.hidden_q, one.mask, sample, f"the quantized {what}")
    return replace(one, hidden=x, hidden_q=x_q)


def _of_all_runs(
    original: nn.Module,
    group: Group,
    blocks: tuple[nn.Module, nn.Module],
    inputs: TargetInputs,
    samples: Sequence[int],
) -> Terms[GroupInputs]:
    """Collects the inputs of each run of a linear that runs several times in one call of the block."""
    gathered, reason = Terms[GroupInputs]([], [], inputs.ranks), NotReached(NO_SAMPLE)
    reached = False
    for run in range(group.runs):
        try:
            of_run = gather_group_inputs(original, replace(group, runs=1, run=run), blocks, inputs, samples)
        except NotReached as found:
            reason = found
        else:
            gathered, reached = gathered.then(of_run), True
    if not reached:
        raise reason
    return gathered


def _finite(x: Tensor, mask: Tensor, sample: int, where: str) -> Tensor:
    if is_finite(x):
        return x
    if not is_finite_where(mask, x):
        raise NotFinite(sample, where)
    return x.nan_to_num(0.0, 0.0, 0.0)
