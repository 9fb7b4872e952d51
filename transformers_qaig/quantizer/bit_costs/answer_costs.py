"""Computes what rounding errors cost the answers, over all samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ...config.budget import NEAREST
from ...execution.exclusions import gradient_advice
from ...execution.offload import copy_to_device
from ...utils.finite import is_finite
from .cost_run import CostRun
from .cost_store import CostStore, RunningCosts
from .draws import DRAWS, Draws
from .estimators import Errors, fisher_losses, losses_alone, output_energies, weight_path_shares

KEPT_EVERY = 8
"""Samples of a rank after which the sum is kept."""


def costs_of(
    run: CostRun, errors: Errors, cost: str, store: CostStore | None = None, index: int = 0
) -> dict[str, float]:
    """Computes the cost of each error, over all samples that are not left out, each of which one rank runs.

    Args:
        run: model, data and settings. Within [`sequential_onload`].
        errors: weight path → what rounding adds.
        cost: how loss is predicted.
        store: keeps the sum over the first samples now and then, and has that of an interrupted measurement.
        index: of the width among those that are measured.

    Raises:
        ValueError: no sample with an answer is left, or NaN or Inf turned up in too many.
    """
    model, data = run.model, run.data
    used = [(s, answer) for s, answer in zip(data.samples, data.answer_masks) if s not in data.exclusions]
    run.bar.update(len(data.samples) - len(used))
    times = 1 if cost == NEAREST else DRAWS
    draws = Draws(run.config.seed, [int(answer[:, 1:].sum()) for _, answer in used], times)

    def cost_of(place: int) -> Tensor:
        run.bar.update(data.ranks.size)
        sample, answer = copy_to_device(used[place][0], run.device), used[place][1]

        def log_p() -> Tensor:
            return answer_log_probabilities(model, sample, answer)

        with torch.no_grad():
            full = log_p() if cost in ("integrated_gradients", "one_at_a_time") else torch.empty(0)

        def loss() -> Tensor:
            return (full.exp() * (full - log_p())).sum(-1).sum()

        if cost in ("fisher", NEAREST):
            return fisher_losses(model, errors, log_p, times, draw=draws.of(place))
        if cost == "integrated_gradients":
            return weight_path_shares(model, errors, loss)
        if cost == "one_at_a_time":
            return losses_alone(model, errors, loss)
        return output_energies(model, errors, log_p)

    samples = [sample.index for sample, _ in used]
    found = None if store is None else store.running_costs(index, cost, samples, len(errors))
    total, tokens, done = found or RunningCosts(torch.zeros(()), 0, 0)
    run.bar.update(done)
    every = KEPT_EVERY * data.ranks.size
    for start in range(done, len(used), every):
        places = range(start, min(start + every, len(used)))
        mine = [place for place in places if data.ranks.owns(place)]
        for place, added in zip(places, data.ranks.of_each(zip(mine, mine), cost_of)):
            sample, answer = used[place]
            if is_finite(added):
                total, tokens = total + added, tokens + int(answer.sum())
            else:
                data.exclusions.add({sample.index: "what rounding costs its answers"}, gradient_advice())
        if store is not None and places.stop < len(used):
            store.save_running_costs(index, cost, samples, RunningCosts(total, tokens, places.stop))
    if not tokens:
        raise ValueError(
            "no calibration sample that is left has an answer: there is nothing whose loss could be predicted."
        )
    if cost == "output_error":
        error, energy = total
        costs = error / energy.clamp(min=torch.finfo(torch.float32).tiny)
    else:
        costs = total / tokens
    return dict(zip(errors, costs.tolist()))


def answer_log_probabilities(model: nn.Module, sample: Mapping[str, Any], answer: Tensor) -> Tensor:
    """Computes log p at an answer's tokens, given the tokens before them.

    Args:
        model: with logits.
        sample: its inputs.
        answer: bool [B, T], True at the tokens that are predicted; the first position is False.

    Returns:
        fp32 [A, V].
    """
    logits = model(**sample, use_cache=False).logits
    return log_softmax(logits[:, :-1][answer[:, 1:].to(logits.device)].float(), dim=-1)
