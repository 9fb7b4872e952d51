"""`onload` moves a block to a device and back, or says why not."""

import pytest
import torch
from torch import nn

from transformers_qaig.execution.offload import onload


def test_resident_refuses_what_it_could_not_bring_back():
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="cpu, meta cannot be moved"), onload(block, "meta"):
        pass
    with pytest.raises(ValueError, match="meta cannot be moved to cpu"), onload(block[1], "cpu"):
        pass


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_resident_does_nothing_where_the_block_is_already(device):
    block = nn.Linear(2, 2)
    pointer = block.weight.data_ptr()
    with onload(block, device):
        assert block.weight.data_ptr() == pointer
    assert block.weight.data_ptr() == pointer
