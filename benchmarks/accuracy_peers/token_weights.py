"""
Token weights that the package does not have, for the second moments of a recipe that rounds by GPTQ.

`NAME-KIND` is recipe NAME with one of `KINDS`; L is the KL of a sample's answers to full precision.

- `path`: what the answers lose by a group's rounding at each token. All linears stand on the path w + α δ, δ their
  rounding to nearest; the share of token u is Σ_m ∫₀¹ ⟨∂L/∂y_mu, x_mu δ_mᵀ⟩ dα over the group's linears m. The shares
  of all groups add up to L at α = 1.
- `downstream`: the same asked of hidden states. h is a block's output in full precision, h^q what the block rounded to
  nearest gives in the quantized model; the blocks behind it are in full precision. The share of token u is
  ∫₀¹ ⟨∂L/∂h_u, h^q_u - h_u⟩ dα on the straight path from h to h^q. They add up to L at h^q.
- `fisher`: E‖∂ log p(ŷ)/∂y_u‖² over a group's outputs y in full precision, answers ŷ drawn from the model.
- any of these with `-shuffled`: dealt out at random among a sample's tokens, the control for it.

Shares become weights as QIG's do: absolute, clipped by the interquartile range, of mean 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from transformers_qaig.execution.block_outputs import first_tensor
from transformers_qaig.execution.layer_inputs import LayerInputs, forward, map_tensors
from transformers_qaig.quantizer.bit_costs.answer_costs import answer_log_probabilities
from transformers_qaig.rounding.quant_grid import minmax_grid
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.token_weights import registry
from transformers_qaig.token_weights.base import Stateless, SubBlock
from transformers_qaig.token_weights.data import WeightingData
from transformers_qaig.token_weights.integrated_gradients import weights_from_attribution
from transformers_qaig.token_weights.precomputed import weights_at_rows

KINDS = ("path", "downstream", "fisher")
DRAWS = 4
Hook = Callable[[nn.Module, tuple, Any], Any]


@contextmanager
def weighed_by(kind: str, bits: int, group_size: int) -> Iterator[None]:
    """Within the context, calibration weighs tokens by `kind`, whatever its recipe says."""

    def given(data: WeightingData) -> Any:
        return Given(kind, bits, group_size, data.model, data.blocks, data.samples, data.masks, data.answer_masks)

    precomputed = dict.fromkeys(registry.KINDS, given)
    made = dict.fromkeys(registry.KINDS, lambda recipe, seed, known: GivenWeights(known))
    with patch.dict(registry.PRECOMPUTED, precomputed), patch.dict(registry.KINDS, made):
        yield


class GivenWeights(Stateless):
    """Asks a `Given` for the weights of each group."""

    def __init__(self, given: Given):
        self.given = given

    def weigh(self, sub_block: SubBlock) -> list[Tensor]:
        block = next(i for i, block in enumerate(self.given.quantized) if block is sub_block.owner)
        members = [name for name in sub_block.group.linears if name in sub_block.schemes]
        known = self.given.weights(block, members)
        return [weights_at_rows(inputs, known) for inputs in sub_block.inputs]


class Given:
    """A kind's weights, for the tiny VLM. Arguments after the group size: those of [`WeightingData`]."""

    def __init__(
        self,
        kind: str,
        bits: int,
        group_size: int,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        samples: Sequence[Mapping[str, Any]],
        masks: Sequence[Tensor],
        answers: Sequence[Tensor],
    ) -> None:
        self.kind = kind.removesuffix("-shuffled")
        self.shuffles = kind.endswith("-shuffled")
        self.quantized, self.samples, self.masks, self.answers = blocks, samples, masks, answers
        # A model that is being quantized has a `float` of its own, which refuses.
        self.full: Any = nn.Module.float(copy.deepcopy(model)).requires_grad_(False)
        self.blocks = list(find_decoder_blocks(self.full).values())
        self.generator = torch.Generator().manual_seed(0)
        self.linears = {
            (i, name): module
            for i, block in enumerate(self.blocks)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        grid = {"bits": bits, "group_size": group_size, "sym": False, "include_zero": True}
        self.errors = {
            module: minmax_grid(module.weight, storage_dtype=torch.bfloat16, **grid).quantize(module.weight)
            - module.weight
            for module in self.linears.values()
        }
        self.calls: list[list[LayerInputs]] = []
        """What every block is called with in full precision: sample → block → call."""
        self.log_p = [self._full_precision(index) for index in range(len(samples))]
        self.states = [first_tensor(calls[0].args) for calls in self.calls]
        """Of the quantized model, at the first block that is not quantized yet."""
        self.shares: dict[Any, list[Tensor]] = {}
        """Block, or block and linear → sample → [B, T]."""
        if self.kind != "downstream":
            found = [(self._path if self.kind == "path" else self._fisher)(index) for index in range(len(samples))]
            self.shares = {key: [rows[key] for rows in found] for key in self.linears}

    def weights(self, block: int, members: Sequence[str]) -> dict[int, Tensor]:
        """Sample → λ [B, T] of a group."""
        if self.kind == "downstream":
            if block not in self.shares:
                self.shares[block] = [self._downstream(block, index) for index in range(len(self.samples))]
            found = self.shares[block]
        else:
            found = [torch.stack(rows).sum(0) for rows in zip(*(self.shares[block, name] for name in members))]
        weights = {s: weights_from_attribution(row.unsqueeze(-1), self.masks[s]) for s, row in enumerate(found)}
        if self.shuffles:
            for s, weight in weights.items():
                values = weight[self.masks[s]]
                weight[self.masks[s]] = values[torch.randperm(len(values), generator=self.generator)]
        return weights

    @torch.no_grad()
    def _full_precision(self, index: int) -> Tensor:
        calls: list[LayerInputs] = []
        handles = [
            block.register_forward_pre_hook(
                lambda block, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
            )
            for block in self.blocks
        ]
        log_p = self._answer(index)
        for handle in handles:
            handle.remove()
        self.calls.append(calls)
        return log_p

    def _answer(self, index: int) -> Tensor:
        sample = {
            key: value.float() if value.is_floating_point() else value for key, value in self.samples[index].items()
        }
        return answer_log_probabilities(self.full, sample, self.answers[index])

    def _path(self, index: int) -> dict[Any, Tensor]:
        total = {key: torch.zeros(self.masks[index].shape) for key in self.linears}
        for node, weight in quadrature(2):
            at = {key: torch.full((*row.shape, 1), node, requires_grad=True) for key, row in total.items()}

            def add(key: Any, at: Mapping[Any, Tensor] = at) -> Hook:
                return lambda part, args, output: output + at[key] * linear(args[0], self.errors[part])

            with torch.enable_grad(), hooked({module: add(key) for key, module in self.linears.items()}):
                loss = kl(self.log_p[index], self._answer(index))
                found = torch.autograd.grad(loss, list(at.values()))
            for key, gradient in zip(at, found):
                total[key] += weight * gradient.squeeze(-1)
        return total

    def _fisher(self, index: int) -> dict[Any, Tensor]:
        shape = self.masks[index].shape
        total = {key: torch.zeros(shape) for key in self.linears}
        probes = {key: torch.zeros(*shape, m.out_features, requires_grad=True) for key, m in self.linears.items()}

        def add(key: Any) -> Hook:
            return lambda part, args, output: output + probes[key]

        with torch.enable_grad(), hooked({module: add(key) for key, module in self.linears.items()}):
            log_p = self._answer(index)
            for draw in range(DRAWS):
                answer = torch.multinomial(log_p.detach().exp(), 1, generator=self.generator)
                score = log_p.gather(1, answer).sum()
                found = torch.autograd.grad(score, list(probes.values()), retain_graph=draw < DRAWS - 1)
                for key, gradient in zip(probes, found):
                    total[key] += gradient.square().sum(-1) / DRAWS
        return total

    def _downstream(self, block: int, index: int) -> Tensor:
        """For one block after the other, each when those before it have been quantized."""
        module, call = self.blocks[block], self.calls[index][block]
        with torch.no_grad():
            if block:
                before = map_tensors(as_bfloat16, self.calls[index][block - 1].kwargs)
                args = (self.states[index].bfloat16(),)
                self.states[index] = first_tensor(forward(self.quantized[block - 1], LayerInputs(args, before))).float()
            h = first_tensor(module(*call.args, **call.kwargs))
            inside = [part for part in module.modules() if isinstance(part, nn.Linear)]
            with hooked(dict.fromkeys(inside, lambda part, args, out: out + linear(args[0], self.errors[part]))):
                step = first_tensor(module(self.states[index], **call.kwargs)) - h
        total = torch.zeros(h.shape[:2])
        for node, weight in quadrature(1):
            point = (h + node * step).requires_grad_()
            with torch.enable_grad():
                loss = kl(self.log_p[index], self._rest(block + 1, point, index))
                (gradient,) = torch.autograd.grad(loss, point)
            total += weight * (gradient * step).sum(-1)
        return total

    def _rest(self, block: int, states: Tensor, index: int) -> Tensor:
        """log p at the answers' tokens from the states that enter a block on, in full precision."""
        for module, call in zip(self.blocks[block:], self.calls[index][block:]):
            states = first_tensor(module(states, **call.kwargs))
        asked = states[:, :-1][self.answers[index][:, 1:]]
        return self.full.lm_head(self.full.model.language_model.norm(asked)).log_softmax(-1)


def kl(full: Tensor, log_p: Tensor) -> Tensor:
    """Σ over the answers' tokens [A, V]."""
    return (full.exp() * (full - log_p)).sum()


def as_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def quadrature(nodes: int) -> list[tuple[float, float]]:
    """Points and weights of Gauss-Legendre on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return [((float(point) + 1) / 2, float(weight) / 2) for point, weight in zip(points, weights)]


@contextmanager
def hooked(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
