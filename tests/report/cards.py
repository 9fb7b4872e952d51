"""A configuration and a report of a made-up run, for tests of the model card."""

from transformers_qaig import QAIGConfig
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.plan.coverage import BLOCKS, Coverage, PartSize
from transformers_qaig.report.base_model import BaseModel
from transformers_qaig.report.summary import QuantizationReport, TargetSummary

BASE = BaseModel("org/vlm", {"license": "apache-2.0", "language": ["en", "de"]})


def config_of_a_run() -> QAIGConfig:
    entry = {"group_size": 64, "sym": False}
    plan = {f"layers.{i}.q_proj": {"bits": bits, **entry} for i, bits in enumerate((3, 3, 8))}
    return QAIGConfig(bits=3, group_size=64, recipe="paper", vision_bits=8, lm_head_bits=8, plan=plan)


def report_of_a_run() -> QuantizationReport:
    plan = {path: WeightScheme(bits, 64) for path, bits in (("q", 3), ("k", 8), ("lm_head", 8))}
    return QuantizationReport(
        recipe="paper",
        coverage=Coverage(
            packed=990,
            total=1000,
            stored_bits=990 * 3.3,
            parts={BLOCKS: PartSize(16_000, 160), "lm_head": PartSize(8_000_000, 2_000_000)},
            outside_plan={"lm_head": plan["lm_head"]},
        ),
        plan=plan,
        num_samples=128,
        num_tokens=12_345,
        targets=[TargetSummary("layers.0", error=1.28e-3), TargetSummary("layers.1", error=float("nan"))],
        seconds=61.0,
    )
