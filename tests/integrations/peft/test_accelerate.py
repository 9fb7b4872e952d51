"""`Accelerator().prepare` around a packed model with adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.integrations.peft.test_lora import load
from tests.lifecycle import inputs

peft = pytest.importorskip("peft", minversion="0.21.2")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Restores the settings that Accelerate keeps for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def prepared(folder: Path, precision: str) -> tuple[Accelerator, Any, Any]:
    """An accelerator, a packed model with adapters, and its optimizer."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = peft.get_peft_model(load(folder), peft.LoraConfig(target_modules="all-linear", r=2))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    return accelerator, *accelerator.prepare(model, optimizer)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


@torch.no_grad()
def logits(model: nn.Module, sample: dict[str, Tensor]) -> Tensor:
    return model.eval()(**sample).logits.float()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_model_trains_its_adapters_and_comes_back(
    llava: Path, quantized: tuple[nn.Module, Path], tmp_path: Path, precision: str
) -> None:
    accelerator, model, optimizer = prepared(quantized[1], precision)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    sample, losses = inputs(llava), []
    for batch in accelerator.prepare(DataLoader([sample] * 4, batch_size=None)):
        loss = model(**batch, labels=batch["input_ids"]).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    accelerator.save_state(tmp_path / "state")
    accelerator.unwrap_model(model).save_pretrained(tmp_path / "adapter")
    expected = logits(model, sample)

    accelerator, resumed, _ = prepared(quantized[1], precision)
    accelerator.load_state(tmp_path / "state")
    reloaded = peft.PeftModel.from_pretrained(load(quantized[1]), tmp_path / "adapter")
    trained = adapters(model)
    accuracy = 1e-5 if precision == "no" else 2e-2  # torch's own products depend on where a tensor lies in memory
    for again in (resumed, reloaded):
        assert all(torch.equal(value, trained[name]) for name, value in adapters(again).items())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            torch.testing.assert_close(logits(again, sample), expected, rtol=accuracy, atol=accuracy)
