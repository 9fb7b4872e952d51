"""Gradients of a batch are those of its samples, added in order."""

import torch
from torch import Tensor

from transformers_qaig.distributed import Terms
from transformers_qaig.distributed.gradients import gradients_in_order


def test_one_process_adds_the_gradients_of_its_samples() -> None:
    weight, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return (weight * x).sum()

    batch = Terms([torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])])
    assert gradients_in_order(loss, [weight, unused], batch) == 33.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [11.0, 22.0]
    assert unused.grad is None
