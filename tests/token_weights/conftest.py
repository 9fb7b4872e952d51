"""What tests of token weights share."""

import pytest
import torch
from torch import nn

from tests import seeds
from tests.families import build, samples
from tests.token_weights.groups import MODULES
from transformers_qaig.equalization.probe import Group, find_groups
from transformers_qaig.execution.gathering import gather_group_inputs
from transformers_qaig.execution.group_inputs import GroupInputs
from transformers_qaig.execution.layer_inputs import LayerInputs, TargetInputs
from transformers_qaig.structure import find_decoder_blocks


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, dict[str, Group], dict[str, list[GroupInputs]]]:
    """A block with grouped-query attention, its groups, and group inputs with padding at their ends, by f_s."""
    model, processor = build("llava")
    block = next(iter(find_decoder_blocks(model).values())).requires_grad_(False)
    calls: list[LayerInputs] = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
    )
    data = samples(processor, 4)
    masks = []
    with torch.no_grad():
        for index, sample in enumerate(data):
            model(**sample, use_cache=False)
            mask = torch.ones_like(sample["attention_mask"], dtype=torch.bool)
            mask[0, mask.shape[1] - index :] = False
            masks.append(mask)
    handle.remove()
    groups = {group.module: group for group in find_groups(block, calls[0].args, calls[0].kwargs)}
    by_index, generator = dict(enumerate(calls)), seeds.generator(3)
    gathered, inputs = {}, TargetInputs(by_index, by_index, masks)
    for module in MODULES:
        gathered[module] = gather_group_inputs(block, groups[module], (block, block), inputs, range(len(data)))
        for entered in gathered[module]:
            entered.hidden_q = entered.hidden + 0.1 * entered.hidden.std() * torch.randn(
                entered.hidden.shape, generator=generator
            )
    return block, groups, gathered
