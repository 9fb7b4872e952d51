"""PEFT on models whose experts are packed."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.experts import build
from transformers_qaig import QAIGConfig
from transformers_qaig.nn.experts import QAIGExperts

peft = pytest.importorskip("peft", minversion="0.21.2")


def test_all_linear_names_the_experts_that_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build("qwen3_moe").save_pretrained(tmp_path)
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert sum(isinstance(module, QAIGExperts) for module in model.modules()) == 2
    ids = torch.arange(3, 19)[None]
    before = model(ids).logits
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    assert "no adapter on 2 packed stacks of experts (model.layers.0.mlp.experts, model.layers.1" in caplog.text
    assert torch.equal(model(ids).logits, before)
    model(ids, labels=ids).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("q_proj" in name for name in trained)
    assert all(grad.isfinite().all() for grad in trained.values() if grad is not None)
    assert sum(grad is not None and grad.norm() > 0 for grad in trained.values()) >= 8  # B of both layers' attention
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    assert torch.equal(again(ids).logits, before)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ({"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}, "2 packed weights"),
        ({"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}, "4 packed weights .*gate_up_proj"),
        ({"target_parameters": ["q_proj.weight", "gate.weight"]}, "2 packed weights .*0.self_attn.q_proj.weight"),
    ],
)
def test_parameters_that_are_packed_are_named(
    targets: dict[str, list[str]], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT makes parameters of the names of experts' projections, and finds none on packed stacks."""
    build("qwen3_moe").save_pretrained(tmp_path)
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    peft.get_peft_model(model, peft.LoraConfig(r=2, **targets))
    assert re.search(f"no adapter on {named}", caplog.text)


def test_no_warning_where_every_target_has_an_adapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build("qwen3_moe").save_pretrained(tmp_path)
    config = QAIGConfig(bits=4, group_size=32, recipe="rtn")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]))
    assert "no adapter" not in caplog.text
