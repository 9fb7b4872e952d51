"""DoRA on a packed layer: norms without a dense weight."""

import pytest
import torch
from torch import nn

from transformers_qaig.formats.scheme import Rotation
from transformers_qaig.nn.linear import QAIGLinear

peft = pytest.importorskip("peft", minversion="0.21.2")


def layer(rotation: Rotation | None, dtype: torch.dtype) -> QAIGLinear:
    codes, zero = torch.randint(0, 8, (48, 64), dtype=torch.uint8), torch.randint(0, 8, (48, 2), dtype=torch.uint8)
    scale, bias = (torch.rand(48, 2) / 8).to(dtype), torch.randn(48, dtype=dtype)
    return QAIGLinear.from_codes(codes, scale, zero, bias, bits=3, group_size=32, rotation=rotation)


@pytest.mark.parametrize("rotation", [None, Rotation(32, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_output_is_that_of_pefts_own_on_the_dense_layer(
    rotation: Rotation | None, dtype: torch.dtype, dropout: float
) -> None:
    packed = layer(rotation, dtype)
    packed.to_kernel_layout()
    config = peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=16, use_dora=True, lora_dropout=dropout)
    models = []
    for base in (packed, packed.to_dense()):
        torch.manual_seed(1)
        model = peft.get_peft_model(nn.Sequential(base), config)
        models.append(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape) / 4
    x = torch.randn(5, 64, dtype=dtype)
    outputs = []
    for model in models:
        torch.manual_seed(2)
        outputs.append(model(x))
        outputs[-1].float().square().sum().backward()
    accuracy = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*outputs, rtol=accuracy, atol=accuracy)
    for one, other in zip(*(model.parameters() for model in models)):
        if one.requires_grad:
            assert (one.grad - other.grad).norm() <= accuracy * other.grad.norm()
