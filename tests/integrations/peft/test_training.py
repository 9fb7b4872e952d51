"""What trains beside PEFT's adapters on packed layers."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.integrations.peft.test_dora import layer
from tests.integrations.peft.test_lora import load, loss
from tests.lifecycle import inputs, packed
from transformers_qaig import QAIGConfig

peft = pytest.importorskip("peft", minversion="0.21.2")


@pytest.fixture(scope="module")
def whole(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head and embeddings are packed, too."""
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", lm_head_bits=8, embedding_bits=8)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return folder


def test_all_linear_leaves_a_packed_head_out(whole: Path) -> None:
    model = peft.get_peft_model(load(whole), peft.LoraConfig(target_modules="all-linear", r=2))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert not any("lm_head" in name for name in adapted)
    assert any("down_proj" in name for name in adapted)


def test_packed_head_and_embeddings_train_as_dense_copies(llava: Path, whole: Path, tmp_path: Path) -> None:
    model = load(whole)
    before = loss(model, llava)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    model = peft.get_peft_model(model, config)
    torch.testing.assert_close(loss(model, llava), before, rtol=1e-4, atol=1e-4)
    loss(model, llava).backward()
    trained = {name: p for name, p in model.named_parameters() if "modules_to_save" in name}
    assert len(trained) == 2
    for parameter in trained.values():
        assert parameter.grad.norm() > 0
        parameter.data -= 0.1 * parameter.grad.sign()
    after = loss(model, llava)
    assert not torch.isclose(after, before, rtol=1e-3)
    with model.disable_adapter():
        assert torch.equal(loss(model, llava), before)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load(whole), tmp_path)
    assert torch.equal(loss(again, llava), after)
    again.dequantize()
    assert not packed(again)
    torch.testing.assert_close(loss(again.merge_and_unload(), llava), after, rtol=1e-4, atol=1e-4)


def test_adapters_go_on_a_packed_head_and_embeddings(llava: Path, whole: Path) -> None:
    model = load(whole)
    before = loss(model, llava)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head", "embed_tokens"]))
    assert torch.equal(loss(model, llava), before)
    loss(model, llava).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(NotImplementedError, match="dequantize"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match=r"use_dora.*embeddings"):
        peft.get_peft_model(load(whole), peft.LoraConfig(target_modules=["embed_tokens"], use_dora=True))


def test_preparing_for_training_casts_nothing_and_turns_checkpointing_on(
    llava: Path, quantized: tuple[nn.Module, Path]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(quantized[1], dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    model = peft.prepare_model_for_kbit_training(model)
    assert {name: p.dtype for name, p in model.named_parameters()} == dtypes
    assert not any(p.requires_grad for p in model.parameters())
    assert model.is_gradient_checkpointing
    model = peft.get_peft_model(model.train(), peft.LoraConfig(target_modules="all-linear", r=2))
    sample = {n: t.bfloat16() if t.is_floating_point() else t for n, t in inputs(llava).items()}
    model(**sample, labels=sample["input_ids"]).loss.backward()
    assert any(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())
    dense = peft.prepare_model_for_kbit_training(load(llava).bfloat16())
    assert {p.dtype for p in dense.parameters()} == {torch.float32}


def test_add_adapter_says_what_to_call_where_peft_is_too_old(
    llava: Path, quantized: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "999")
    config = peft.LoraConfig(target_modules="all-linear", r=2)
    with pytest.raises(ValueError, match=r"999.*get_peft_model.*PeftModel\.from_pretrained"):
        load(quantized[1]).add_adapter(config)
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.2")
    model = load(quantized[1])
    before = loss(model, llava)
    model.add_adapter(config)
    assert torch.equal(loss(model, llava), before)
    assert sum(hasattr(module, "lora_A") for module in model.modules()) > len(packed(model))


@pytest.mark.parametrize("packs", [True, False])
def test_single_tokens_are_trained_on_dense_embeddings_only(packs: bool, llava: Path) -> None:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", embedding_bits=8 if packs else None)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    lora = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 4]})
    if packs:
        with pytest.raises(ValueError, match=r"`trainable_token_indices` is not supported.*modules_to_save"):
            peft.get_peft_model(model, lora)
    else:
        names = [name for name, p in peft.get_peft_model(model, lora).named_parameters() if p.requires_grad]
        assert any("trainable_tokens" in name for name in names)


@pytest.mark.parametrize("packs", [True, False])
def test_prompts_are_trained_on_dense_embeddings_only(packs: bool, llava: Path) -> None:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", embedding_bits=8 if packs else None)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    if packs:
        with pytest.raises(ValueError, match="Prompt tuning is not supported on packed embeddings"):
            peft.get_peft_model(model, prompts)
    else:
        ids = torch.arange(3, 9)[None]
        peft.get_peft_model(model, prompts)(input_ids=ids, labels=ids).loss.backward()


def test_modules_to_save_may_be_updated_again_and_names_what_holds_packed_weights() -> None:
    wrapper = peft.utils.other.ModulesToSaveWrapper(layer(None, torch.float32), "default")
    copy = wrapper.modules_to_save["default"]
    wrapper.update("default")
    assert wrapper.modules_to_save["default"] is copy
    assert type(copy) is nn.Linear
    with pytest.raises(ValueError, match="names a Sequential, which holds packed weights"):
        peft.utils.other.ModulesToSaveWrapper(nn.Sequential(layer(None, torch.float32)), "default")
