"""PEFT's LoRA on packed layers, with nothing registered by the user."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import inputs, packed, run
from transformers_qaig import QAIGConfig

peft = pytest.importorskip("peft", minversion="0.21.2")

PROJECTIONS = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def load(folder: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder)


def adapted(model: nn.Module) -> list[str]:
    return sorted(name for name, module in model.named_modules() if hasattr(module, "lora_A"))


def randomised(model: nn.Module) -> nn.Module:
    """With adapters that change the answer: they start as zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return model


def loss(model: nn.Module, llava: Path) -> Tensor:
    sample = inputs(llava)
    return model(**sample, labels=sample["input_ids"]).loss


def test_all_linear_means_the_same_layers_as_in_full_precision(llava: Path, quantized: tuple[nn.Module, Path]) -> None:
    config = {"target_modules": "all-linear", "r": 2}
    models = [peft.get_peft_model(load(path), peft.LoraConfig(**config)) for path in (llava, quantized[1])]
    assert adapted(models[0]) == adapted(models[1])
    assert len(packed(models[1])) == 14


def test_all_linear_leaves_a_packed_head_out(llava: Path) -> None:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", lm_head_bits=8)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    assert not any("lm_head" in name for name in adapted(model))
    assert any("down_proj" in name for name in adapted(model))


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"], PROJECTIONS])
def test_forward_and_gradients_are_those_on_the_dequantized_model(
    llava: Path, quantized: tuple[nn.Module, Path], target: Any
) -> None:
    config = {"target_modules": target, "r": 4, "lora_alpha": 8, "use_rslora": True}
    models = [load(quantized[1]), load(quantized[1]).dequantize()]
    models = [randomised(peft.get_peft_model(model, peft.LoraConfig(**config))) for model in models]
    losses = [loss(model, llava) for model in models]
    for value in losses:
        value.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in models]
    assert gradients[0].keys() == gradients[1].keys()
    assert all("lora_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient - gradients[1][name]).norm() <= 1e-3 * gradients[1][name].norm() + 1e-7, name
    assert any(gradient.norm() > 0 for gradient in gradients[0].values())


def test_an_adapter_is_saved_loaded_and_switched_off(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    before = loss(quantized[0], llava)
    model = peft.get_peft_model(load(quantized[1]), peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    assert torch.equal(loss(model, llava), before)
    trained = loss(randomised(model), llava)
    assert not torch.isclose(trained, before, rtol=1e-3)
    with model.disable_adapter():
        assert torch.equal(loss(model, llava), before)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    again = peft.PeftModel.from_pretrained(load(quantized[1]), tmp_path)
    assert torch.equal(loss(again, llava), trained)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora.*dequantize"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*dequantize"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'.*dequantize"),
        ({"velora_config": peft.tuners.lora.config.VeloraConfig()}, "velora_config.*dequantize"),
    ],
)
def test_what_reads_the_weight_is_refused(quantized: tuple[nn.Module, Path], settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        peft.get_peft_model(load(quantized[1]), peft.LoraConfig(target_modules=["q_proj"], **settings))


def test_merging_is_refused(quantized: tuple[nn.Module, Path]) -> None:
    model = peft.get_peft_model(load(quantized[1]), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(NotImplementedError, match="dequantize"):
        model.merge_and_unload()


def test_a_packed_head_is_not_trained_as_a_whole(llava: Path) -> None:
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn", lm_head_bits=8)
    model = AutoModelForImageTextToText.from_pretrained(llava, quantization_config=config)
    with pytest.raises(ValueError, match=r"modules_to_save.*packed"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    before = loss(model, llava)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "lm_head"]))
    assert torch.equal(loss(model, llava), before)


def test_other_adapters_say_that_they_do_not_know_packed_layers(quantized: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ValueError, match=r"QAIGLinear.* is not supported"):
        peft.get_peft_model(load(quantized[1]), peft.IA3Config(target_modules="all-linear", feedforward_modules=[]))


@pytest.mark.parametrize(
    "imports", ["peft, transformers_qaig", "transformers_qaig.integrations.peft_lora, peft", "transformers_qaig, peft"]
)
def test_the_order_of_imports_does_not_matter(quantized: tuple[nn.Module, Path], imports: str) -> None:
    code = (
        f"import sys\nsys.path.append({str(Path(peft.__file__).parents[1])!r})\n"
        f"import {imports}\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"model = Auto.from_pretrained({str(quantized[1])!r})\n"
        "model = peft.get_peft_model(model, peft.LoraConfig(target_modules=['q_proj']))\n"
        "assert sum(hasattr(module, 'lora_A') for module in model.modules()) >= 4\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr
