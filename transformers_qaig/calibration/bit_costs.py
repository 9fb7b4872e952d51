"""Measures what each way to store each weight costs the answers, before anything is quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from ..attribution.draws import Draws
from ..attribution.parameters import Errors, fisher_losses, losses_alone, output_energies, weight_path_shares
from ..config import QAIGConfig
from ..data.samples import token_mask
from ..distributed import ALONE, Ranks
from ..distributed.joining import device_of
from ..distributed.work_folder import SharedFolder, shared_folder
from ..equalization.finder import GroupFinder
from ..execution.block_outputs import check_inputs_of, forward
from ..execution.exclusions import Exclusions, Sample, gradient_advice, numbered
from ..execution.few_rows import independent_of_thread_count
from ..execution.interceptor import TargetInputs
from ..execution.offload import offloaded
from ..execution.paused_forward import PausedForwards, drop_others, sample_excluder
from ..execution.sequential_onload import moved, sequential_onload
from ..execution.targets import find_targets
from ..execution.torch_state import default_torch_state
from ..nn.linear import get_linear
from ..plan.allocate import SchemeOption
from ..scheme import Plan, inside
from ..structure import ModelStructure
from ..token_weights.registry import token_weights_of
from ..utils.finite import is_finite
from ..utils.hashing import digest
from ..utils.logging import ProgressBar, tqdm
from .decisions import dtype_of, in_float32, rounding_errors
from .held_back import held_back_every
from .quantize_block import decide
from .quantizer_settings import settings_of
from .resume import run_facts


@default_torch_state()
def measure_costs(
    model: PreTrainedModel,
    options: Mapping[str, Sequence[SchemeOption]],
    samples: Sequence[Mapping[str, Any]],
    answers: Sequence[Tensor],
    config: QAIGConfig,
    exclusions: Exclusions | None = None,
    structure: ModelStructure | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, list[SchemeOption]]:
    """Returns the options with their costs, in nats per answer token (`"output_error"`: relative squared output error).

    Every width is rounded as the recipe would: searched block by block on full-precision inputs, all linears of the
    block at that width. Then the samples run through the model with those errors, as the cost asks for. The model is
    left as it was. With a `work_dir` the errors of finished blocks, and the costs of finished widths, are kept there;
    another cost finds the same errors.

    Args:
        model: in full precision, in evaluation mode, on the CPU.
        options: from [`list_schemes`].
        samples: model inputs on the CPU, one conversation each.
        answers: bool [B, T] per sample, True at the tokens of its answers; the first position is False.
        config: cost, recipe, seed, work folder, calibration device.
        exclusions: samples that are left out already; those in which NaN or Inf turns up are added.
        structure: of the model; found here if it is not given.
        ranks: over which the samples are spread; all are given the same arguments.

    Raises:
        ValueError: no sample has an answer's token; the work folder belongs to another run, is in use by one, or
            cannot be written; or NaN or Inf turned up in too many samples.
    """
    if not any(bool(answer.any()) for answer in answers):
        raise ValueError("no calibration sample has an answer: there is nothing whose loss could be predicted.")
    budget = config.budget
    assert budget is not None
    device = device_of(ranks, config.calibration.device)
    samples = numbered(samples)
    structure = structure or ModelStructure.of(model)
    exclusions = exclusions or Exclusions(len(samples), structure.dtype)
    work_path = config.calibration.work_path
    folder = work_path / "costs" if work_path is not None else None

    def run(alive: Callable[[], None]) -> dict[str, Any]:
        return {
            "options": {path: [option.scheme.to_dict() for option in choices] for path, choices in options.items()},
            "answers": digest([{"a": a} for a in answers]),
            "recipe": config.recipe.to_dict(),
            "seed": config.seed,
            "activation_bits": config.activation_bits,
            **run_facts(config, samples, model, alive),
        }

    blocks = list(structure.blocks.values())
    costs: dict[str, list[float]] = {path: [] for path in options}
    count = max(len(choices) for choices in options.values())
    with (
        shared_folder(folder, run, ranks) as store,
        independent_of_thread_count(model),
        tqdm(total=count * (len(blocks) + len(samples)), desc=f"Costs ({budget.cost})", unit="step") as bar,
    ):
        for index in range(count):
            # A weight with fewer options is stored as in its last one meanwhile.
            plan = {path: choices[min(index, len(choices) - 1)].scheme for path, choices in options.items()}
            known = _recall(store, f"{index}.costs.{budget.cost}", exclusions, partial(_stored_costs, list(plan)))
            if known is not None:
                found = known
                bar.update(len(blocks) + len(samples))
            else:
                errors = errors_of(
                    model, structure, plan, samples, config, device, bar, exclusions, store, f"{index}.errors.", ranks
                )
                with sequential_onload(model, blocks, device):
                    found = costs_of(
                        model, errors, samples, answers, config.seed, budget.cost, device, bar, exclusions, ranks
                    )
                if store is not None:
                    facts = {"costs": json.dumps(found), "left_out": json.dumps(exclusions.where)}
                    store.save(f"{index}.costs.{budget.cost}", {}, facts)
            for path, choices in options.items():
                if index < len(choices):
                    costs[path].append(found[path])
    return {
        path: [replace(option, cost=cost) for option, cost in zip(choices, costs[path])]
        for path, choices in options.items()
    }


def errors_of(
    model: PreTrainedModel,
    structure: ModelStructure,
    plan: Plan,
    samples: Sequence[Sample],
    config: QAIGConfig,
    device: torch.device | str | None,
    bar: ProgressBar,
    exclusions: Exclusions,
    store: SharedFolder | None = None,
    prefix: str = "",
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Computes the rounding error of each weight by the recipe: path → [N, K] in the weight's dtype, on the CPU.

    Every block reads full-precision inputs, because the rounding of earlier blocks is not decided yet. The errors of a
    block are kept in `store`, as `prefix` and the block's path.
    """
    recipe, errors = config.recipe, {}
    if recipe.rounding == "learned":  # learning every width would take hours; its start ranks them as well
        recipe = replace(recipe, rounding="gptq")
    read: Sequence[Sample] = samples if recipe.calibrates else []
    targets, _ = find_targets(model, structure, [], read, device)
    finder, modules = GroupFinder(structure.shared, config.seed), [target.module for target in targets]
    with (
        offloaded(model, modules, device) as offload,
        PausedForwards(model, modules, read, inputs_device="cpu") as full,
    ):
        exclude_samples = sample_excluder(exclusions, read, full)
        drop_others(ranks, len(read), held_back_every(recipe), full)
        for index, target in enumerate(targets):
            path, block = target.path, target.module
            masks = [token_mask(sample, target.token_input) for sample in samples]
            schemes, waiting = inside(plan, path), full.inputs(index)
            inputs = TargetInputs(waiting, waiting, masks, exclude_samples, ranks)
            check_inputs_of(path, inputs)
            with offload.onload(block):
                of_file = partial(_stored_errors, block, list(schemes))
                known = _recall(store, f"{prefix}{path}", exclusions, of_file) if schemes else None
                if known is not None:
                    found = known
                    exclude_samples = sample_excluder(exclusions, read, full)
                elif schemes:
                    token_weights = token_weights_of(recipe, config.seed)  # for each block, as if it stood alone
                    settings = settings_of(config, recipe, finder, token_weights)
                    decisions, _ = decide(block, path, schemes, inputs, settings)
                    dtype = dtype_of(block, schemes)
                    deltas = rounding_errors(in_float32(block), decisions, dtype)
                    found = {name: delta.to("cpu", dtype).contiguous() for name, delta in deltas.items()}
                    if store is not None:
                        store.save(f"{prefix}{path}", found, {"left_out": json.dumps(exclusions.where)})
                else:
                    found = {}
                for sample in list(waiting) if block is not modules[-1] else ():
                    full.resume(sample, forward(block, waiting[sample], on_trial=False))
            errors.update({f"{path}.{name}": delta for name, delta in found.items()})
            bar.update()
    return {path: errors[path] for path in plan}


Pieces = TypeVar("Pieces")


def _recall(
    store: SharedFolder | None,
    name: str,
    exclusions: Exclusions,
    read: Callable[[dict[str, Tensor], dict[str, str]], Pieces],
) -> Pieces | None:
    """Reads a piece of the work folder, and leaves out the samples that it was measured without."""

    def read_both(tensors: dict[str, Tensor], facts: dict[str, str]) -> tuple[Pieces, dict[int, str]]:
        left_out = {int(index): str(where) for index, where in json.loads(facts["left_out"]).items()}
        return read(tensors, facts), left_out

    found = store.load_as(name, read_both) if store is not None else None
    if found is None:
        return None
    exclusions.add(found[1], "Begin anew with other samples.")
    return found[0]


def _stored_costs(paths: Sequence[str], tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, float]:
    costs = json.loads(facts["costs"])
    return {path: float(costs[path]) for path in paths}


def _stored_errors(
    block: nn.Module, names: Sequence[str], tensors: Mapping[str, Tensor], facts: Mapping[str, str]
) -> dict[str, Tensor]:
    for name in names:
        if tensors[name].shape != get_linear(block, name).weight.shape:
            raise ValueError(f"{name} has shape {list(tensors[name].shape)}")
    return {name: tensors[name] for name in names}


def costs_of(
    model: nn.Module,
    errors: Errors,
    samples: Sequence[Sample],
    answers: Sequence[Tensor],
    seed: int,
    cost: str,
    device: torch.device | str | None,
    bar: ProgressBar,
    exclusions: Exclusions,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Computes the cost of each error, over all samples that are not left out, each of which one rank runs."""
    used = [(sample, answer) for sample, answer in zip(samples, answers) if sample not in exclusions]
    bar.update(len(samples) - len(used))
    draws = Draws(seed, [int(answer[:, 1:].sum()) for _, answer in used])

    def cost_of(place: int) -> Tensor:
        bar.update(ranks.size)
        sample, answer = moved(used[place][0], device), used[place][1]

        def log_p() -> Tensor:
            return answer_log_probabilities(model, sample, answer)

        with torch.no_grad():
            full = log_p() if cost in ("integrated_gradients", "one_at_a_time") else torch.empty(0)

        def loss() -> Tensor:
            return (full.exp() * (full - log_p())).sum(-1).sum()

        if cost == "fisher":
            return fisher_losses(model, errors, log_p, draw=draws.of(place))
        if cost == "integrated_gradients":
            return weight_path_shares(model, errors, loss)
        if cost == "one_at_a_time":
            return losses_alone(model, errors, loss)
        return output_energies(model, errors, log_p)

    mine = [place for place in range(len(used)) if ranks.owns(place)]
    total: Tensor = torch.zeros(())
    tokens = 0
    for (sample, answer), found in zip(used, ranks.of_each(zip(mine, mine), cost_of)):
        if is_finite(found):
            total, tokens = total + found, tokens + int(answer.sum())
        else:
            exclusions.add({sample.index: "what rounding costs its answers"}, gradient_advice())
    if not tokens:
        raise ValueError(
            "no calibration sample that is left has an answer: there is nothing whose loss could be predicted."
        )
    by = total[1].clamp(min=torch.finfo(torch.float32).tiny) if cost == "output_error" else tokens
    values = (total[0] if cost == "output_error" else total) / by
    return dict(zip(errors, values.tolist()))


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
