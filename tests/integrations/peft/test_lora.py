"""PEFT's LoRA, DoRA and IA3 on packed layers, with nothing registered by the user."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.lifecycle import inputs, packed, run

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
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        elif "magnitude" in name or "ia3_" in name:
            parameter.data *= 1 + torch.randn(parameter.shape, generator=generator) / 4
    return model


def loss(model: nn.Module, llava: Path) -> Tensor:
    sample = inputs(llava)
    return model(**sample, labels=sample["input_ids"]).loss


def test_all_linear_means_the_same_layers_as_in_full_precision(llava: Path, quantized: tuple[nn.Module, Path]) -> None:
    config = {"target_modules": "all-linear", "r": 2}
    models = [peft.get_peft_model(load(path), peft.LoraConfig(**config)) for path in (llava, quantized[1])]
    assert adapted(models[0]) == adapted(models[1])
    assert len(packed(models[1])) == 14


ADAPTERS = {
    "all-linear": lambda: peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, use_rslora=True),
    "names": lambda: peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4),
    "pattern": lambda: peft.LoraConfig(target_modules=PROJECTIONS, r=4),
    "dora": lambda: peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "up_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_forward_and_gradients_are_those_on_the_dequantized_model(
    llava: Path, quantized: tuple[nn.Module, Path], config: Callable[[], Any]
) -> None:
    models = [load(quantized[1]), load(quantized[1]).dequantize()]
    models = [randomised(peft.get_peft_model(model, config())) for model in models]
    losses = [loss(model, llava) for model in models]
    for value in losses:
        value.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in models]
    assert gradients[0].keys() == gradients[1].keys()
    assert all("lora_" in name or "ia3_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient - gradients[1][name]).norm() <= 1e-3 * gradients[1][name].norm() + 1e-7, name
    assert any(gradient.norm() > 0 for gradient in gradients[0].values())


@pytest.mark.parametrize("name", ["names", "dora", "ia3"])
def test_an_adapter_is_saved_loaded_and_switched_off(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path, name: str
) -> None:
    before = loss(quantized[0], llava)
    model = peft.get_peft_model(load(quantized[1]), ADAPTERS[name]())
    torch.testing.assert_close(loss(model, llava), before, rtol=0, atol=1e-5 if name == "dora" else 0)
    trained = loss(randomised(model), llava)
    assert not torch.isclose(trained, before, rtol=1e-3)
    with model.disable_adapter():
        assert torch.equal(loss(model, llava), before)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    again = peft.PeftModel.from_pretrained(load(quantized[1]), tmp_path, low_cpu_mem_usage=name == "dora")
    parameters = dict(again.named_parameters())
    assert all(torch.equal(parameters[path], parameter) for path, parameter in model.named_parameters())
    # With `low_cpu_mem_usage` tensors stand where the file has them, not aligned, and products round otherwise.
    torch.testing.assert_close(loss(again, llava), trained, rtol=0, atol=1e-5 if name == "dora" else 0)
    again.load_adapter(tmp_path, adapter_name="second")
    again.set_adapter("second")
    assert torch.equal(loss(again, llava), trained)


@pytest.mark.parametrize("name", ["names", "dora", "ia3"])
def test_an_adapter_is_merged_once_the_model_is_dequantized(
    llava: Path, quantized: tuple[nn.Module, Path], name: str
) -> None:
    model = randomised(peft.get_peft_model(load(quantized[1]), ADAPTERS[name]()))
    with pytest.raises(NotImplementedError, match="dequantize"):
        model.merge_and_unload()
    trained = loss(model, llava)
    model.dequantize()
    merged = model.merge_and_unload()
    assert not packed(merged)
    assert type(merged.get_submodule("model.language_model.layers.0.mlp.down_proj")) is nn.Linear
    torch.testing.assert_close(loss(merged, llava), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*dequantize"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'.*dequantize"),
        ({"velora_config": peft.tuners.lora.config.VeloraConfig()}, "velora_config.*dequantize"),
    ],
)
def test_what_reads_the_weight_is_refused(quantized: tuple[nn.Module, Path], settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        peft.get_peft_model(load(quantized[1]), peft.LoraConfig(target_modules=["q_proj"], **settings))


def test_an_initialization_without_the_weight_is_plain_lora(quantized: tuple[nn.Module, Path]) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights="orthogonal")
    assert adapted(peft.get_peft_model(load(quantized[1]), config))


def test_other_adapters_say_that_they_do_not_know_packed_layers(quantized: tuple[nn.Module, Path]) -> None:
    with pytest.raises(TypeError, match=r"QAIGLinear.* not supported"):
        peft.get_peft_model(load(quantized[1]), peft.LoHaConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    "imports",
    [
        "import peft, transformers_qaig",
        "import transformers_qaig.integrations.peft.install, peft",
        "import transformers_qaig, peft",
        "import transformers_qaig; importlib.util.find_spec('peft'); import peft",  # as is_peft_available() does
    ],
)
def test_the_order_of_imports_does_not_matter(quantized: tuple[nn.Module, Path], imports: str) -> None:
    code = (
        f"import importlib.util, sys\nsys.path.append({str(Path(peft.__file__).parents[1])!r})\n"
        f"{imports}\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"model = Auto.from_pretrained({str(quantized[1])!r})\n"
        "model = peft.get_peft_model(model, peft.LoraConfig(target_modules=['q_proj']))\n"
        "assert sum(hasattr(module, 'lora_A') for module in model.modules()) >= 4\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr
