"""Learns all scales of the language model together, once its blocks are quantized, on the answers' tokens.

The loss is KL(full ‖ quantized) of what is predicted there. Codes stay. Before quantization `remember` draws more
answers from the full model, and keeps the hidden states that enter its head. The head then makes them predictions,
whenever these are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..data.calibration_data import CalibrationData
from ..data.own_answers import MOST_TOKENS, Asked, own_answers
from ..distributed import Terms
from ..distributed.gradients import gradients_in_order
from ..execution.held_back import VALIDATION_EVERY, held_back_every
from ..execution.learned_scales import ScaledLinear, frozen_parameters, learning_scales
from ..execution.offload import onload, sequential_onload
from ..execution.paired_head import Head, NoSingleHead, divergence, hidden_at_head
from ..nn.embedding import QAIGEmbedding
from ..nn.linear import QAIGLinear
from ..nn.packed_tensors import frozen
from ..rounding.learned import Learned, learn
from ..rounding.learned_scales import LearnableFactors
from ..structure import ModelStructure
from ..utils.finite import is_finite
from ..utils.logging import get_logger, tqdm
from ..utils.scratch import ScratchFiles
from .resume import BlockStore

logger = get_logger(__name__)

BATCH = 4
"""Samples per step."""
RATE = 2e-3
STEPS = 2
"""Steps for each step of learned rounding."""
FILE = "end_to_end"
"""What the learned scales are called in the work folder."""


@dataclass(frozen=True)
class Prediction:
    """What the full model said of one sample.

    Attributes:
        sample: the model's inputs.
        question: number of the sample whose question it answers: its own, or that of what is given.
        counts: int64 [A], positions of the tokens that are compared.
        hidden: their hidden states [A, C] at the full model's head, in the model's dtype, on the CPU.
    """

    sample: Mapping[str, Any]
    question: int
    counts: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class EndToEnd:
    """What the full model said of this rank's samples.

    Attributes:
        model: that is quantized meanwhile.
        structure: of the model.
        data: to calibrate with.
        config: of the run.
        device: where to compute; None: where the model is.
        predictions: by number: samples of `data` first, then the answers that the full model gave.
        why_not: why there are none; "" if there are.
    """

    model: PreTrainedModel
    structure: ModelStructure
    data: CalibrationData
    config: QAIGConfig
    device: torch.device | str | None
    predictions: Mapping[int, Prediction]
    why_not: str = ""

    @classmethod
    def remember(
        cls,
        model: PreTrainedModel,
        structure: ModelStructure,
        data: CalibrationData,
        config: QAIGConfig,
        device: torch.device | str | None,
    ) -> EndToEnd:
        """Runs the samples of this rank through the full model, and what it answers by itself to their questions.

        Args:
            model: in full precision.
            structure: of the model.
            data: to calibrate with.
            config: of the run.
            device: where to compute.
        """
        make = partial(cls, model, structure, data, config, device)
        head, every = structure.head.module, held_back_every(config.recipe)
        if not isinstance(head, nn.Linear):
            return make({}, "the model has no linear head")
        mine = [s for s in range(len(data.samples)) if data.ranks.owns(s, every)]
        asked: dict[int, Asked] = {
            s: (s, data.samples[s], data.answer_masks[s]) for s in mine if data.samples[s] not in data.exclusions
        }
        if config.recipe.own_answers:
            drawn_from = [s for s in asked if not config.recipe.validate or s % VALIDATION_EVERY]
            asked |= own_answers(model, data, drawn_from, structure.picture_tokens, config.seed, device)
        found: dict[int, Prediction] = {}
        try:
            with sequential_onload(model, list(structure.blocks.values()), device):
                for number, (question, sample, answers) in tqdm(
                    asked.items(), desc="Predictions in full precision", unit="sample"
                ):
                    counts = _before_answers(answers)
                    if not len(counts):
                        continue
                    states = hidden_at_head(model, head, sample, counts, device).to(structure.dtype)
                    if is_finite(states):
                        found[number] = Prediction(sample, question, counts, states)
                for one in list(found.values())[:1]:  # what cannot be compared fails here, not after hours
                    with torch.no_grad():
                        divergence(model, (head, None, head.forward), one.sample, one.counts, one.hidden, device)
        except NoSingleHead as error:
            return make({}, str(error))
        return make(found)

    def learn(self, store: BlockStore) -> str:
        """Learns the scales of the quantized model, or reads them from `store`; returns what came of it.

        Scales change only if the divergence of the held-back samples falls.
        """
        layers = self._layers()
        found = None if store.folder is None else store.folder.load_as(FILE, partial(_read, layers))
        if found is None:
            reason = self._why_not(layers)
            if reason:
                logger.warning("Scales are not learned end to end: %s.", reason)
                return f"skipped: {reason}"
            learned = self._learn(layers)
            scales = learned.results if learned.is_better else {}
            stored = {path: scale.to(layers[path].weight_scale.dtype) for path, scale in scales.items()}
            found = stored, (learned.start, learned.best)
            if store.folder is not None:
                store.folder.save(FILE, stored, {"divergence": json.dumps(found[1])})
        scales, (start, best) = found
        for path, scale in scales.items():
            layers[path].weight_scale = frozen(scale)
        fell = f"KL of held-back answers {start:.3g} → {best:.3g}"
        return fell if scales else f"KL of held-back answers stays {start:.3g}: undone"

    def _layers(self) -> dict[str, QAIGLinear]:
        """Returns the packed linears of the language model's blocks, by path in the model."""
        return {
            f"{path}.{name}": layer
            for path, block in self.structure.blocks.items()
            for name, layer in block.named_modules()
            if isinstance(layer, QAIGLinear)
        }

    def _why_not(self, layers: Mapping[str, QAIGLinear]) -> str:
        reasons = [reason for reason in self.data.ranks.gather(self.why_not) if reason]
        if reasons:
            return reasons[0]
        if not any(self.data.ranks.gather(bool(self.predictions))):
            return "no calibration sample has an answer"
        return "" if layers else "no linear of the language model is packed"

    def _learn(self, layers: Mapping[str, QAIGLinear]) -> Learned:
        recipe, ranks, seed = self.config.recipe, self.data.ranks, self.config.seed
        used = {
            number: one
            for number, one in self.predictions.items()
            if self.data.samples[one.question] not in self.data.exclusions
        }
        facts = ranks.gather([(number, one.question, len(one.counts)) for number, one in used.items()])
        owners = {number: rank for rank, of_rank in enumerate(facts) for number, _, _ in of_rank}
        questions = {number: question for number, question, _ in chain(*facts)}
        tokens = {number: count for number, _, count in chain(*facts)}
        given = sorted(number for number, question in questions.items() if number == question)
        held_back = given[::VALIDATION_EVERY] if recipe.validate else given
        apart = held_back if recipe.validate else []
        drawn_from = sorted(number for number in questions if questions[number] not in apart) or held_back
        stored = {path: layer.weight_scale for path, layer in layers.items()}
        soft = {path: LearnableFactors(scale.detach().float(), scale.dtype) for path, scale in stored.items()}
        generator = torch.Generator().manual_seed(seed)

        def terms(batch: Sequence[int]) -> Terms[int]:
            return Terms([s for s in batch if s in used], [owners[s] for s in batch], ranks)

        with self._learning(layers) as (scaled, loss):

            def batch_loss(scales: Mapping[str, Tensor], step: int) -> float:
                _set(scaled, scales)
                batch = [drawn_from[i] for i in torch.randperm(len(drawn_from), generator=generator)[:BATCH].tolist()]
                unit = sum(tokens[s] for s in batch)
                mean = gradients_in_order(lambda s: loss(s) / unit, list(scales.values()), terms(batch))
                bar.update()
                bar.set_postfix(loss=f"{mean:.2e}")
                return mean

            def validate(scales: Mapping[str, Tensor]) -> float:
                _set(scaled, scales)
                return sum(terms(held_back).of_each(lambda s: float(loss(s)))) / sum(tokens[s] for s in held_back)

            steps = STEPS * recipe.steps
            with tqdm(total=steps, desc="Learning scales end to end", unit="step") as bar:
                return learn(soft, batch_loss, validate, steps=steps, rate=RATE)

    @contextmanager
    def _learning(
        self, layers: Mapping[str, QAIGLinear]
    ) -> Iterator[tuple[dict[str, ScaledLinear], Callable[[int], Tensor]]]:
        """Yields the layers whose scales are learned, and the loss of a sample, summed over its tokens."""
        model, structure, device = self.model, self.structure, self.device
        full, head = structure.head.module, model.get_submodule(structure.head.path)
        assert isinstance(full, nn.Linear)
        folder = self.config.calibration.work_path
        keep = (lambda codes: codes) if folder is None else ScratchFiles(folder).store
        with ExitStack() as stack:
            scaled = stack.enter_context(learning_scales(model, layers, keep))
            stack.enter_context(frozen_parameters(model))
            stack.enter_context(sequential_onload(model, list(structure.blocks.values()), device))
            if full is not head:
                stack.enter_context(onload(full, device, dtype=torch.float32))
            heads = head, self._tied_head(full), full.forward

            def loss(number: int) -> Tensor:
                one = self.predictions[number]
                return divergence(model, heads, one.sample, one.counts, one.hidden, device)

            yield scaled, loss

    def _tied_head(self, head: nn.Linear) -> Head | None:
        """Returns what a dense head computes once it is tied to packed embeddings; None if it will not be."""
        embeddings = self.model.get_submodule(self.structure.embeddings.path)
        if not self.structure.is_tied or not isinstance(embeddings, QAIGEmbedding):
            return None
        weight = embeddings.dequantize(torch.float32)
        return lambda hidden: linear(hidden, weight, head.bias)


def _set(scaled: Mapping[str, ScaledLinear], scales: Mapping[str, Tensor]) -> None:
    for path, scale in scales.items():
        scaled[path].scale = scale


def _before_answers(answer: Tensor) -> Tensor:
    """Returns positions from which an answer's tokens are predicted, int64: at most `MOST_TOKENS`, evenly spread.

    Args:
        answer: bool [B, T], True at its tokens; the first position is False.
    """
    places = pad(answer[:, 1:], (0, 1)).flatten().nonzero().flatten()
    if len(places) <= MOST_TOKENS:
        return places
    return places[torch.linspace(0, len(places) - 1, MOST_TOKENS).round().long()]


def _read(
    layers: Mapping[str, QAIGLinear], tensors: dict[str, Tensor], facts: Mapping[str, str]
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Reads learned scales from what the work folder holds."""
    for path, scale in tensors.items():
        own = layers[path].weight_scale
        if (scale.shape, scale.dtype) != (own.shape, own.dtype):
            raise ValueError(f"{path} has scales {list(scale.shape)} in {scale.dtype}")
    start, best = json.loads(facts["divergence"])
    return tensors, (float(start), float(best))
