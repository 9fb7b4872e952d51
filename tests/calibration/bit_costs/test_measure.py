"""What each width of an expert costs the answers, and what a budget makes of it."""

import torch
import transformers as hf

from tests.experts import build, stack_of
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.calibration.bit_costs.measure import measure_costs
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.loading.experts import linearize_experts
from transformers_qaig.nn.experts_layout import find_experts
from transformers_qaig.plan.allocate import allocate
from transformers_qaig.plan.build import list_schemes

RARE = 3


def model_with_a_rare_expert() -> hf.PreTrainedModel:
    model = build("deepseek_v3")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()[RARE] = -1e4
    return model


def test_an_expert_that_no_token_needs_costs_nothing_and_gets_the_fewest_bits() -> None:
    model = model_with_a_rare_expert()
    stack, layout = stack_of(model)
    config = QAIGConfig(
        group_size=32, recipe="rtn", budget=BitBudget(bits=4.5, candidates=(2, 3, 4, 8), cost="fisher"), seed=0
    )
    options, coverage = list_schemes(model, config)
    linearize_experts(model, find_experts(model), {path: choices[0].scheme for path, choices in options.items()})
    ids = torch.randint(3, 128, (6, 1, 24), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    answers = [torch.arange(24)[None] > 4 for _ in samples]
    measured = measure_costs(model, options, CalibrationData.of(samples, answers), config)
    costs = [[option.cost for option in measured[f"{stack}.{e}.up_proj"]] for e in range(layout.num_experts)]
    assert costs[RARE] == [0.0] * 4
    assert all(costs[e][0] > costs[e][-1] > 0 for e in range(layout.num_experts) if e != RARE)
    schemes = allocate(measured, 4.5 * coverage.packed).schemes
    bits = [[schemes[f"{stack}.{e}.{name}"].bits for name in layout.projections] for e in range(layout.num_experts)]
    assert bits[RARE] == [2, 2, 2]
    assert all(sum(own) > 6 for e, own in enumerate(bits) if e != RARE)
