"""A model whose blocks are loaded one by one computes what the model computes, and comes back as it was."""

import torch
from torch import Tensor, nn

from tests.families import build, samples
from tests.tolerance import assert_close, terms_of
from transformers_qaig.execution.offload import sequential_onload
from transformers_qaig.structure import find_decoder_blocks


def _model(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    model, processor = build("llava")
    return model.eval().requires_grad_(False).to(dtype), samples(processor, 1)[0]


def test_a_16_bit_model_computes_in_float32_and_comes_back_unchanged() -> None:
    model, sample = _model(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with sequential_onload(model, list(find_decoder_blocks(model).values()), None), torch.no_grad():
        one_by_one = model(**sample, use_cache=False).logits
        assert one_by_one.dtype == torch.float32
        assert all(
            p.dtype == torch.bfloat16 for block in find_decoder_blocks(model).values() for p in block.parameters()
        )
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert not any("forward" in vars(block) for block in find_decoder_blocks(model).values())
    with torch.no_grad():
        assert_close(one_by_one, model.float()(**sample, use_cache=False).logits, terms_of(model))


def test_gradients_are_those_of_the_model_with_one_block_alive() -> None:
    model, sample = _model(torch.float32)
    embeddings = model.get_input_embeddings()
    gradients, saved = [], []
    for sequential in (False, True):
        embeddings.weight.requires_grad_().grad = None
        live = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal live
            live += tensor.numel()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            if sequential:
                with sequential_onload(model, list(find_decoder_blocks(model).values()), None):
                    loss = model(**sample, use_cache=False).logits.logsumexp(-1).sum()
                    saved.append(live)
                    (gradient,) = torch.autograd.grad(loss, embeddings.weight)
            else:
                loss = model(**sample, use_cache=False).logits.logsumexp(-1).sum()
                saved.append(live)
                (gradient,) = torch.autograd.grad(loss, embeddings.weight)
        gradients.append(gradient)
    assert_close(gradients[1], gradients[0], 2 * terms_of(model))
    assert saved[1] < saved[0] / 2


def test_gradients_of_a_16_bit_model_are_those_in_float32() -> None:
    model, sample = _model(torch.bfloat16)

    def gradient() -> Tensor:
        embedded = model.get_input_embeddings()(sample["input_ids"]).float().requires_grad_()
        with torch.enable_grad():
            inputs = {name: value for name, value in sample.items() if name == "attention_mask"}
            loss = model.model.language_model(inputs_embeds=embedded, use_cache=False, **inputs)[0].logsumexp(-1).sum()
            return torch.autograd.grad(loss, embedded)[0]

    with sequential_onload(model, list(find_decoder_blocks(model).values()), None):
        one_by_one = gradient()
    model.float()
    assert_close(one_by_one, gradient(), 2 * terms_of(model))


def test_a_models_own_forward_attribute_is_put_back() -> None:
    model, sample = _model(torch.float32)
    block = next(iter(find_decoder_blocks(model).values()))
    calls = []

    def own(*args, **kwargs):
        calls.append(1)
        return type(block).forward(block, *args, **kwargs)

    block.forward = own
    with sequential_onload(model, list(find_decoder_blocks(model).values()), None), torch.no_grad():
        model(**sample, use_cache=False)
    assert block.forward is own
    assert calls


def test_a_blocks_hooks_run_once_so_that_a_tower_collects_its_hidden_states() -> None:
    model, sample = _model(torch.float32)
    tower = model.model.vision_tower.encoder.layers
    calls: list[Tensor] = []
    handle = tower[0].register_forward_hook(lambda module, args, output: calls.append(output))
    with torch.no_grad():
        expected = model(**sample, use_cache=False).logits
        with sequential_onload(model, list(tower), None):
            found = model(**sample, use_cache=False).logits
    handle.remove()
    assert torch.equal(found, expected)
    assert len(calls) == 2
