"""The head on two hidden states at once: which rows it gets, what comes out, and models that have no such head."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from tests.tolerance import rounding
from transformers_qaig.execution.paired_head import NoSingleHead, divergence, hidden_at_head

VOCABULARY, CHANNELS = 11, 6
COUNTS = torch.tensor([1, 2, 7])
"""Of a batch of two with five tokens each."""


class Toy(nn.Module):
    """Embeddings, a head, and a soft cap on what it returns; `changed` stands for what other models do."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seeds.seed(seed))
        self.embeddings, self.head = nn.Embedding(VOCABULARY, CHANNELS), nn.Linear(CHANNELS, VOCABULARY)
        self.head_inputs: list[Tensor] = []
        self.head.register_forward_pre_hook(lambda module, args: self.head_inputs.append(args[0]))

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.cap(self.head(self.embeddings(input_ids))))

    @staticmethod
    def cap(logits: Tensor) -> Tensor:
        return 2 * torch.tanh(logits / 2)


def sample() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(VOCABULARY, (2, 5), generator=seeds.generator(5))}


def hidden_of(model: Toy, inputs: dict[str, Tensor] | None = None) -> Tensor:
    return hidden_at_head(model, model.head, inputs or sample(), COUNTS, None)


def divergence_of(model: Toy, hidden: Tensor, own: Any = None, full: Any = None) -> Tensor:
    return divergence(model, (model.head, own, full or model.head.forward), sample(), COUNTS, hidden, None)


def test_the_rows_of_the_tokens_that_count_are_returned() -> None:
    model = Toy()
    hidden = hidden_of(model)
    assert torch.equal(hidden, model.embeddings(sample()["input_ids"]).flatten(0, 1)[COUNTS])
    assert not hidden.requires_grad
    assert "forward" not in vars(model.head)


def test_for_them_the_head_multiplies_one_token_of_each_row() -> None:
    model, widths = Toy(), []
    product = model.head.forward
    model.head.forward = lambda x: (widths.append(tuple(x.shape)), product(x))[1]
    before = model.head.forward
    hidden_of(model)
    assert widths == [(2, 1, CHANNELS)]
    assert model.head.forward is before, "a forward of the head's own comes back"


def test_an_encoder_decoders_tokens_are_those_of_its_decoder() -> None:
    class EncoderDecoder(Toy):
        def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
            return super().forward(decoder_input_ids, use_cache)

    model, ids = EncoderDecoder(), sample()["input_ids"]
    hidden = hidden_of(model, {"input_ids": ids[:, :3], "decoder_input_ids": ids})
    assert torch.equal(hidden, model.embeddings(ids).flatten(0, 1)[COUNTS])


def test_the_divergence_is_by_its_definition_after_the_models_cap() -> None:
    quantized, full = Toy(), Toy(1)
    found = divergence_of(quantized, hidden_of(full), full=full.head.forward)
    assert "forward" not in vars(quantized.head)
    with torch.no_grad():
        logits = [model.double()(**sample(), use_cache=False).logits for model in (quantized, full)]
    got, wanted = (each.flatten(0, 1)[COUNTS] for each in logits)
    log_p, log_q = wanted.log_softmax(-1), got.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum()
    magnitude = float((log_p.exp() * (log_p.abs() + log_q.abs())).sum())
    allowed = rounding(torch.float32, 2 * (CHANNELS + VOCABULARY)) * magnitude
    assert abs(float(found.detach()) - float(expected)) <= allowed


def test_a_model_does_not_diverge_from_itself() -> None:
    model = Toy()
    assert float(divergence_of(model, hidden_of(model))) == 0


def test_gradients_are_of_the_quantized_model_alone() -> None:
    quantized, full = Toy(), Toy(1)
    divergence_of(quantized, hidden_of(full), full=full.head.forward).backward()
    gradient = quantized.embeddings.weight.grad
    read = sample()["input_ids"].flatten()[COUNTS].unique()
    assert gradient is not None
    assert gradient.norm(dim=-1).nonzero().flatten().tolist() == read.tolist(), "only tokens that count"
    assert quantized.head.weight.grad is not None
    assert full.head.weight.grad is None


def test_what_stands_for_the_head_is_run_in_its_place() -> None:
    model, other = Toy(), Toy(1)
    hidden = hidden_of(model)
    found = divergence_of(model, hidden, own=other.head.forward, full=other.head.forward)
    assert float(found) == 0
    assert float(divergence_of(model, hidden, own=other.head.forward)) > 0


def test_a_failing_forward_leaves_the_head_as_it_was() -> None:
    model = Toy()
    for run in (hidden_of, lambda model: divergence_of(model, torch.zeros(3, CHANNELS + 1))):
        before = model.cap
        model.cap = lambda logits: 1 / 0  # type: ignore[method-assign, assignment]
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            run(model)
        model.cap = before  # type: ignore[method-assign]
        assert "forward" not in vars(model.head)


class Twice(Toy):
    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        self.head(self.embeddings(input_ids))
        return super().forward(input_ids, use_cache)


class Never(Toy):
    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.embeddings(input_ids))


class Flat(Toy):
    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embeddings(input_ids).flatten(0, 1)))


class Last(Toy):
    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embeddings(input_ids[:, -1:])))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Twice, "the head runs 2 times"),
        (Never, "the head runs 0 times"),
        (Flat, r"the head gets hidden states \[10, 6\]"),
        (Last, r"the head gets hidden states \[2, 1, 6\]"),
    ],
)
def test_a_model_without_hidden_states_of_each_token_is_told(cls: type[Toy], message: str) -> None:
    with pytest.raises(NoSingleHead, match=message):
        hidden_of(cls())


def test_inputs_without_ids_are_told() -> None:
    class Embedded(Toy):
        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(logits=self.head(inputs_embeds))

    with pytest.raises(NoSingleHead, match="the head gets hidden states"):
        hidden_of(Embedded(), {"inputs_embeds": torch.zeros(2, 5, CHANNELS)})


def test_logits_of_another_shape_are_told() -> None:
    class Sliced(Toy):
        def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=super().forward(input_ids, use_cache).logits[:, :1])

    model = Sliced()
    with pytest.raises(NoSingleHead, match=r"the logits are \[2, 1, 11\]"):
        divergence_of(model, hidden_of(model))
