"""What linears and embeddings share: their tensors, frozen and of fixed dtypes, and the checks of their sizes."""

import pytest
import torch

from transformers_qaig.nn.linear import QAIGLinear


def test_tensors_have_the_shapes_of_the_format() -> None:
    layer = QAIGLinear(96, 40, bits=3, group_size=32, sym=False, bias=False, dtype=torch.bfloat16)
    shapes = {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight_packed": ((40, 9), torch.int32),
        "weight_scale": ((40, 3), torch.bfloat16),
        "weight_zero_point": ((4, 3), torch.int32),
        "weight_shape": ((2,), torch.int64),
    }
    assert layer.weight_shape.tolist() == [40, 96]
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_symmetric_weight_has_no_zero_point_and_a_cast_keeps_the_scales() -> None:
    layer = QAIGLinear(64, 32, bits=4, group_size=-1, sym=True, bias=True, dtype=torch.float32)
    assert layer.weight_zero_point is None
    layer.half()
    assert layer.weight_scale.dtype == torch.float32
    assert layer.bias.dtype == torch.float16


def test_scales_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of .*got torch\.float64"):
        QAIGLinear(64, 32, bits=4, group_size=32, sym=True, bias=False, dtype=torch.float64)
