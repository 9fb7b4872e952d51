"""`--dry-run`: what a run takes, from a config alone."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLMoeConfig

import transformers_qaig_cli
from transformers_qaig import BitBudget, QAIGConfig
from transformers_qaig.cli import dry_run

GB, BFLOAT16 = 1e9, 2
ROOT = Path(__file__).parents[2]


def dense(hidden, layers, heads, kv_heads, intermediate):
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": 152064,
    }
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": hidden}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, dtype=torch.bfloat16)


def sparse(hidden, layers, heads, kv_heads, experts, intermediate):
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": intermediate,
        "vocab_size": 151936,
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config={"out_hidden_size": hidden}, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "billions", "block_weights", "flop_a_token"),
    [
        (dense(3584, 28, 28, 4, 18944), 8.29, 233.0e6, 6.5e9),
        (dense(8192, 80, 64, 8, 29568), 73.4, 878e6, 70.2e9),
        (sparse(4096, 94, 64, 4, 128, 1536), 235.7, 2487e6, 20.4e9),
        pytest.param(sparse(7168, 61, 64, 8, 384, 2048), 1042.6, 17040e6, 29.0e9, marks=pytest.mark.slow),
    ],
    ids=["7B", "72B", "235B-A22B", "1T"],
)
def test_shapes_of_known_size(config, billions, block_weights, flop_a_token):
    model = dry_run.model_of(config)
    found = dry_run.estimate_for(model, QAIGConfig(bits=4, group_size=128), 1024)
    assert found.checkpoint == pytest.approx(billions * GB * BFLOAT16, rel=0.02)
    # 4 bits, and 16 + 4 for each group of 128; the rest is embeddings, head and tower.
    assert 4.156 / 16 < found.result / found.checkpoint < 0.45
    # A block in 16 bits, its copy in 32, and at least the moments of its widest input.
    assert found.device_memory > block_weights * 6
    assert found.flop["forward passes"] == pytest.approx(5 * 128 * 1024 * 2 * flop_a_token, rel=0.05)
    # The packed model, the samples that wait, and less than one block in float32 and its inputs.
    assert found.result < found.memory < found.result + 15 * GB + 4 * block_weights
    is_dense = config.model_type == "qwen2_5_vl"  # experts are joined on loading, and written in their place
    assert found.disk == found.result if is_dense else 0.9 < (found.disk - found.result) / found.checkpoint < 1
    in_files = QAIGConfig(bits=4, group_size=128, calibration={"work_dir": "work"})
    kept = dry_run.estimate_for(model, in_files, 1024)
    assert kept.memory == found.memory - found.result
    assert kept.disk == found.disk + (1 if is_dense else 2) * found.result


def test_a_budget_that_leaves_one_choice_takes_no_time_for_costs():
    model = dry_run.model_of(dense(3584, 2, 28, 4, 18944))
    takes = [dry_run.estimate_for(model, QAIGConfig(budget=BitBudget(uniform=bits)), 1024) for bits in (2, 3)]
    assert ["costs of widths" in found.flop for found in takes] == [False, True]


@pytest.mark.parametrize("budget", ["4x", "5GB"])
def test_a_budget_for_the_file_is_what_the_result_takes(budget):
    model = dry_run.model_of(dense(3584, 28, 28, 4, 18944))
    found = dry_run.estimate_for(model, QAIGConfig(budget=BitBudget(size=budget, cost="fisher")), 1024)
    assert found.result == pytest.approx(found.checkpoint / 4 if budget == "4x" else 5 * GB, rel=1e-6)
    errors = found.checkpoint  # of nearly all weights, in bfloat16
    assert found.memory == pytest.approx(errors, rel=0.2)
    assert found.flop["costs of widths"] > 4 * 4 * found.flop["forward passes"] / 5


def test_a_block_of_7b_is_as_large_as_counted():
    ledger = (ROOT / "benchmarks/results/device_memory.jsonl").read_text().splitlines()
    counted = next(row for row in map(json.loads, ledger) if (row["task"], row["phase"]) == ("default", "block"))
    found = dry_run.estimate_for(dry_run.model_of(dense(3584, 28, 28, 4, 18944)), QAIGConfig(bits=3), 1024)
    assert found.device_memory == pytest.approx(counted["peak_bytes"], rel=0.1)


def test_what_best_learns_of_experts_is_in_memory_or_in_files():
    model = dry_run.model_of(sparse(2048, 4, 32, 4, 128, 768))
    learned = 20 * 128 * 3 * 2048 * 768

    def found(recipe, memory=None):
        return dry_run.estimate_for(model, QAIGConfig(recipe=recipe, calibration={"expert_memory": memory}), 1024)

    rounded, whole, limited = found("default"), found("best"), found("best", "2GB")
    assert whole.device_memory - limited.device_memory == limited.disk - whole.disk == learned - 2 * GB
    assert whole.device_memory > rounded.device_memory
    assert whole.disk == rounded.disk
    assert found("best", "200GB") == whole


def test_learning_end_to_end_holds_a_byte_a_weight_in_memory_or_in_files():
    model = dry_run.model_of(dense(3584, 28, 28, 4, 18944))

    def found(calibration=None, **change):
        recipe = {"name": "default", **change}
        config = QAIGConfig(bits=4, group_size=128, recipe=recipe, calibration=calibration or {})
        return dry_run.estimate_for(model, config, 1024)

    weights = 28 * 233.0e6
    plain, learned = found(), found(end_to_end=True)
    assert plain.flop["forward passes"] == learned.flop["forward passes"]
    steps = learned.flop["learning end to end"]
    assert steps == pytest.approx(2 * 100 * 6 * 4 / 128 * plain.flop["forward passes"] / 5)
    assert 0.95 * weights < learned.memory - plain.result < 1.25 * weights
    files = {"work_dir": "work"}
    kept, before = found(files, end_to_end=True), found(files)
    assert kept.disk - before.disk == pytest.approx(weights, rel=0.01)
    assert kept.memory < weights / 2
    more = found(files, end_to_end=True, own_answers=True)
    assert more.flop["learning end to end"] == pytest.approx(steps + 2 * 7 * plain.flop["forward passes"] / 5)
    assert more.memory - kept.memory == pytest.approx(7 * 128 * 256 * 3584 * 2, rel=0.01)


@pytest.mark.parametrize("command", [["quantize", "--bits", "3"], ["plan"]])
def test_no_weight_is_read(command, monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "examples/tiny-vlm/model/config.json").read_text())
    assert transformers_qaig_cli.main([*command, str(tmp_path), "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "Python, torch and libraries, which hold " in printed
    assert all(what in printed for what in ("memory", "result", "disk", "time, rounding", "time in all"))


def test_quantize_without_dry_run_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        transformers_qaig_cli.main(["quantize", "some/model"])
    assert "OUT" in capsys.readouterr().err
