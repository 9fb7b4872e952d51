"""The report of a run: a few lines to print, all of it on request."""

import pytest
import torch

from transformers_qaig.config.budget import DEFAULT_BUDGET, BitBudget
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.coverage import BLOCKS, Coverage, OutsideWeight, PartSize
from transformers_qaig.report import summary
from transformers_qaig.report.summary import QuantizationReport, TargetSummary

PLAN = {"layers.0.q": WeightScheme(3, 64), "layers.0.k": WeightScheme(2, 64), "lm_head": WeightScheme(8, 64)}


@pytest.fixture
def report() -> QuantizationReport:
    coverage = Coverage(
        packed=990,
        total=1000,
        stored_bits=990 * 3.3,
        skipped={"layers.0.router": (10, "too small")},
        outside_plan={"lm_head": PLAN["lm_head"]},
        parts={
            BLOCKS: PartSize(16_000_000, 160_000),
            "model.vision_tower": PartSize(8_000_000, 8_000_000),
            "lm_head": PartSize(4_000_000, 2_000_000),
            "model.norm": PartSize(512, 512),
            "model.projector": PartSize(1024, 1024),
        },
        unused=["LlavaModel has no module for mtp.*: not saved"],
    )
    targets = [
        TargetSummary("layers.0", 1e-4, accepted=["gptq q", "clip k"], rejected=["rotate q"], seconds=75.0),
        TargetSummary("layers.1", 4e-4, accepted=["gptq q"], resumed=True),
    ]
    return QuantizationReport("default", coverage, PLAN, 127, 12_345, targets, 3700.0, 2**20, {3: "the input"})


def test_experts_with_too_few_tokens_come_with_a_remedy(report: QuantizationReport) -> None:
    report.targets[0].averaged = {"mlp.experts": 3}
    line = next(line for line in str(report).splitlines() if line.startswith("experts"))
    assert "3 saw too few tokens" in line
    assert "moe_calibrate_all_experts=True" in line


def test_the_short_form_says_what_was_packed_and_what_was_not(report: QuantizationReport) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "Quantized with recipe 'default': 127 samples, 12,345 tokens, 1 h 1 min"
    cells = {line.split("  ")[0]: line.split() for line in lines}
    assert cells["language model's blocks"][3:] == ["2,", "3", "2", "MB", "20.41", "kB", "98.00"]
    assert cells["model.vision_tower"][1:] == ["not", "packed", "1", "MB", "1", "MB"]
    assert cells["lm_head"][1:] == ["8", "500", "kB", "250", "kB", "2.00"]
    assert cells["2 small parts"][3:] == ["not", "packed", "192", "bytes", "192", "bytes"]
    assert cells["whole model"][2:] == ["3.5", "MB", "1.271", "MB", "2.75"]
    text = str(report)
    for said in (
        "stored bits     3.30 per packed weight",
        "widths          1 × 2 bits, 1 × 3 bits\n",
        "99.0% of the blocks' 1,000 weights",
        "1 of the blocks' tensors: 1 × too small",
        "▃█  1.0e-04 to 4.0e-04, most in layers.1",
        "1 of 4 steps: no gain on validation samples",
        "samples 3: NaN or Inf in the input",
        "mtp.*: not saved",
    ):
        assert said in text, said
    assert "1.00" not in text
    assert max(map(len, lines)) < 100


def test_the_long_form_has_every_part_and_every_block(report: QuantizationReport) -> None:
    text = report.details()
    for said in ("model.projector", "model.norm", "1.00e-04         2         1     1 min 15 s",
                 "4.00e-04         1         0  from work_dir", "rotate q", "layers.0.router  10 weights",
                 "3  the input", "1.00 MiB"):  # fmt: skip
        assert said in text, said


def test_a_run_without_data_says_nothing_of_errors() -> None:
    coverage = Coverage(packed=10, total=10, stored_bits=40, parts={BLOCKS: PartSize(160, 0)})
    report = QuantizationReport("rtn", coverage, targets=[TargetSummary("layers.0")], seconds=2.345)
    assert str(report).startswith("Quantized with recipe 'rtn': no data, 2.35 s")
    for text in (str(report), report.details()):
        assert "nan" not in text.lower()
    assert "rejected" not in str(report)


def test_the_report_counts_linears_rounded_to_nearest_once() -> None:
    targets = [TargetSummary(f"layers.{i}", to_nearest={"fc": "no sample gets there"}) for i in range(3)]
    report = QuantizationReport("default", Coverage(), targets=targets)
    assert ("to nearest", "3 linears: 3 × no sample gets there") in report.facts()
    assert "layers.2.fc" in report.details()


def test_names_of_before_still_work_with_a_warning() -> None:
    target = TargetSummary("layers.0", token_weights={"mlp": {0: torch.ones(2)}})
    with pytest.warns(FutureWarning, match="Use `targets`"):
        assert QuantizationReport("default", Coverage(), targets=[target]).blocks == [target]
    with pytest.warns(FutureWarning, match="Use `token_weights`"):
        assert target.importance is target.token_weights
    with pytest.warns(FutureWarning, match="Use `TargetSummary`"):
        assert summary.BlockSummary is TargetSummary


def test_what_a_budget_chose_outside_the_blocks_is_told_by_part(report: QuantizationReport) -> None:
    assert "outside " not in str(report)
    report.coverage.outside_choices = {
        "lm_head": OutsideWeight("lm_head", 100),
        "tower.0": OutsideWeight("tower", 10),
        "tower.1": OutsideWeight("tower", 10),
    }
    report.plan = {**report.plan, "tower.0": WeightScheme(2, 64)}
    line = next(line for line in str(report).splitlines() if line.startswith("outside"))
    assert line.split(maxsplit=1)[1] == "lm_head: 1 × 8 bits; tower: 1 × 2 bits, 1 × not packed"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (DEFAULT_BUDGET, "by default, by what they cost the answers; bits=4 turns this off"),
        (BitBudget(bits=3.2), "under `budget`: 3.2 bits"),
        (BitBudget(uniform=3), "under `budget`: as much as 3 bits for all"),
    ],
)
def test_the_report_says_by_what_widths_were_chosen(budget: BitBudget, said: str, report: QuantizationReport) -> None:
    assert "widths chosen" not in str(report)
    report.budget = budget
    line = next(line for line in str(report).splitlines() if line.startswith("widths chosen"))
    assert line.split(maxsplit=2)[2] == said


def test_one_width_for_all_by_costs_is_explained(report: QuantizationReport) -> None:
    report.plan = {"layers.0.q": WeightScheme(4, 64), "layers.0.k": WeightScheme(4, 64)}
    assert "widths" not in str(report)
    why = "4 bits in all blocks, as no mix of 3, 4 and 8 bits that fits costs the answers less"
    for report.budget, by in (
        (DEFAULT_BUDGET, "by default"),
        (BitBudget(size="4x", candidates=(3, 4, 8)), "under `budget`: 4x"),
    ):
        (line,) = (line for line in str(report).splitlines() if line.startswith("widths"))
        assert line.split(maxsplit=2)[2].startswith(by)
        assert line.endswith(f"; {why}")
