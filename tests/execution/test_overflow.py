"""A float16 model that overflows on a little text is refused; no other model is run or changed."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from tests import seeds
from transformers_qaig.execution.overflow import TOKENS, check_forward
from transformers_qaig.structure import ModelStructure

VOCABULARY = 40


def tiny(cls: type[PreTrainedModel] = LlamaForCausalLM, dtype: torch.dtype = torch.float16) -> PreTrainedModel:
    torch.manual_seed(seeds.seed())
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return cls(LlamaConfig(**sizes, vocab_size=VOCABULARY)).to(dtype).eval()


def check(model: PreTrainedModel, **changed: Any) -> None:
    """Checks the model, whose forward is afterwards as it was before."""
    forward = vars(model).get("forward")
    try:
        check_forward(model, replace(ModelStructure.of(model), **changed), None)
    finally:
        assert vars(model).get("forward") is forward
        for module in model.modules():
            assert not module._forward_hooks, "a hook is left"
            assert not module._forward_pre_hooks, "a hook is left"


def ids_of(model: PreTrainedModel, **changed: Any) -> list[Tensor]:
    """The texts that the model is run on."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    check_forward(model, replace(ModelStructure.of(model), **changed), None)
    handle.remove()
    return seen


@torch.no_grad()
def overflow(module: nn.Module) -> None:
    module.get_parameter("weight").fill_(60_000)


def test_a_model_without_overflow_passes() -> None:
    check(tiny())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_first_block_that_overflows_is_named(index: int) -> None:
    model = tiny()
    for block in model.model.layers[index:]:
        overflow(block.post_attention_layernorm)
    message = rf"in the output of model\.layers\.{index} for a text of {TOKENS} tokens.*dtype=torch\.bfloat16"
    with pytest.raises(ValueError, match=message):
        check(model)


def test_logits_that_overflow_are_named() -> None:
    model = tiny()
    overflow(model.lm_head)
    with pytest.raises(ValueError, match="in the logits for a text"):
        check(model)


def test_a_model_without_logits_is_looked_at_by_its_blocks() -> None:
    model = tiny(LlamaModel)
    check(model)
    overflow(model.layers[1].post_attention_layernorm)
    with pytest.raises(ValueError, match=r"in the output of layers\.1 "):
        check(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_not_run(dtype: torch.dtype) -> None:
    assert ids_of(tiny(dtype=dtype)) == []


def test_the_text_is_from_all_over_the_vocabulary_without_pictures() -> None:
    (ids,) = ids_of(tiny())
    assert ids.shape == (1, TOKENS)
    assert (int(ids.min()), int(ids.max())) == (0, VOCABULARY - 1)
    assert len(ids.unique()) == TOKENS
    (ids,) = ids_of(tiny(), picture_tokens=[0, *range(20, VOCABULARY)])
    assert (int(ids.min()), int(ids.max())) == (1, 19)


def test_a_model_that_takes_no_text_alone_is_left_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    overflow(model.model.layers[0].post_attention_layernorm)

    def forward(**inputs: Any) -> None:
        raise TypeError("no picture")

    monkeypatch.setattr(model, "forward", forward)
    caplog.set_level(logging.INFO, logger="transformers.qaig")
    check(model)
    assert "LlamaForCausalLM is not looked at for overflow, a text alone fails: no picture" in caplog.text
