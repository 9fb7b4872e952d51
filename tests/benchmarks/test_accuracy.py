"""The accuracy benchmark's own logic: which rows it makes, that it resumes, how rows are paired and checked."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import seeds
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio, pooled

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import accuracy_ledger
import ledger
from accuracy_checks import check_weights, stacked, unstacked
from accuracy_ledger import Ledger, cells
from accuracy_peers import PEERS, Method, method
from accuracy_peers.tensors import read_inputs, write_inputs
from accuracy_table import gather, ratios, table


def statistics(kl: Any, conversation: Any = None) -> AnswerStatistics:
    kl = np.asarray(kl, dtype=np.float32)
    number = len(kl)
    return AnswerStatistics(
        exact=np.arange(number) % 2 == 0,
        nll=np.ones(number, dtype=np.float32),
        kl=kl,
        agreement=np.ones(number, dtype=np.float32),
        tokens=np.arange(number) % 3 + 1,
        task=np.array(["read", "count"] * (number // 2)),
        conversation=np.arange(number) // 2 if conversation is None else conversation,
    )


def row(name: str, calibration: int | str = 0, **more: Any) -> dict[str, Any]:
    identity = {"bits": 3, "group_size": 64, "activation_bits": 16, "calibration": calibration, "samples": 128}
    sizes = {"bits_per_weight": 3.25, "file_bytes": 9e6, "exact_match": 0.9, "seconds": 1.0, "peak_rss_mib": 500.0}
    return {"method": name, **identity, **sizes, **more}


def test_cells_are_what_each_method_offers() -> None:
    methods = {
        "data-free": Method("a", calibrates=False),
        "reads": Method("b", widths=(4,), rounds_activations=True),
        "reads-for-activations": Method("c", rounds_activations=True, calibrates=False, calibrates_activations=True),
    }
    found = cells(methods, [(3, 16), (4, 16), (4, 8)], [0, 3000], 128, 64)
    shown = [(c["method"], c["bits"], c["activation_bits"], c["calibration"]) for c in found]
    assert shown == [
        ("data-free", 3, 16, "-"),
        ("reads-for-activations", 3, 16, "-"),
        ("data-free", 4, 16, "-"),
        ("reads", 4, 16, 0),
        ("reads", 4, 16, 3000),
        ("reads-for-activations", 4, 16, "-"),
        ("reads", 4, 8, 0),
        ("reads", 4, 8, 3000),
        ("reads-for-activations", 4, 8, 0),
        ("reads-for-activations", 4, 8, 3000),
    ]
    assert {c["samples"] for c in found if c["calibration"] == "-"} == {0}
    assert method("fast-qig").settings["recipe"] == "fast-qig"
    assert all(method(name) is PEERS[name] for name in PEERS)


def test_ledger_resumes_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = Ledger(path)
    kl = seeds.rng().exponential(size=6)
    first.add(row("a"), statistics(kl))
    first.add(row("b", error="no wheel"), None)

    again = Ledger(path)
    assert again.has(row("a"))
    assert again.has(row("b"))
    assert not again.has(row("b"), retry=True)
    assert not again.has(row("a", calibration=3000))
    assert not again.has({**row("a"), "bits": 2})
    np.testing.assert_array_equal(again.statistics(row("a")).kl, kl.astype(np.float32))
    assert again.statistics(row("a")).exact.dtype == bool

    again.add(row("b"), statistics(2 * kl))  # the error's row is replaced, not doubled
    assert [json.loads(line)["method"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert paired_ratio(again.statistics(row("b")), again.statistics(row("a")))[0] == pytest.approx(2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl", "rows.npz"]
    with pytest.raises(ValueError, match="other questions"):
        again.add(row("c"), statistics(kl, conversation=np.arange(6)))
    with pytest.raises(ValueError, match=r"\.jsonl"):
        Ledger(tmp_path / "rows.json")


def test_rows_are_merged_into_the_ledger_with_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_ledger, "RESULTS", tmp_path)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    kl = seeds.rng().exponential(size=6)
    origin = {"date": "2026-01-01", "machine": "a CPU", "versions": {}, "changed": ["a.path"]}
    new = Ledger(tmp_path / "mine" / "rows.jsonl")
    command = "python benchmarks/accuracy.py /home/me/rows.jsonl --model /home/me/story"
    for method_name, commit in (("a", "abc"), ("b", "abc"), ("c", "def")):
        new.add(row(method_name, commit=commit, command=command, **origin), statistics(kl))
    new.add(row("d", error="no wheel", commit="def", command=command, **origin), None)

    assert accuracy_ledger.merge("accuracy_mine", new.path) == 3
    found = list(ledger.rows_of("accuracy_mine"))
    assert [(one["method"], one["run"], one["commit"], one["changed"]) for one in found] == [
        ("a", "accuracy_mine-1", "abc", 1),
        ("b", "accuracy_mine-1", "abc", 1),
        ("c", "accuracy_mine-2", "def", 1),
    ]
    assert found[0]["command"] == "python benchmarks/accuracy.py accuracy_mine.jsonl --model story"
    np.testing.assert_array_equal(
        Ledger(tmp_path / "accuracy_mine.jsonl").statistics(row("c")).kl, kl.astype(np.float32)
    )

    new.add(row("c", commit="def+", command=command, **origin), statistics(kl))
    with pytest.raises(ValueError, match="1 rows of uncommitted code"):
        accuracy_ledger.merge("accuracy_mine", new.path)


def test_ratios_pair_calibration_sets() -> None:
    rng = seeds.rng()
    base = [rng.exponential(size=80) for _ in range(3)]
    peer = [(row("peer", first), statistics(kl)) for first, kl in zip((0, 3000, 6000), base)]
    ours = [(row("ours", first), statistics(0.5 * kl)) for first, kl in zip((0, 3000), base)]
    (ratio, lower, upper), each = ratios(ours, peer)
    assert (ratio, lower, upper) == pytest.approx((0.5, 0.5, 0.5), rel=1e-5)
    assert each == pytest.approx({0: 0.5, 3000: 0.5}, rel=1e-5)

    data_free = [(row("hqq", "-"), statistics(base[0]))]
    found, each = ratios(ours, data_free)
    assert list(each) == [0, 3000]
    assert each[0] == pytest.approx(0.5, rel=1e-5)
    pool = pooled([figures for _, figures in ours])
    assert found == paired_ratio(pool, data_free[0][1])
    assert ratios(ours, [(row("peer", 6000), statistics(base[2]))]) is None
    assert ratios(ours, [(row("peer", 0, error="x"), None)]) is None


def test_table_shows_ratios_and_says_why_a_row_is_missing(tmp_path: Path) -> None:
    peers, ours = Ledger(tmp_path / "peers.jsonl"), Ledger(tmp_path / "ours.jsonl")
    kl = seeds.rng().exponential(size=80)
    peers.add(row("peer"), statistics(kl))
    peers.add(row("broken", error="Traceback\nImportError: needs torch 3"), None)
    peers.add(row("mended", error="broken"), None)
    ours.add(row("mended"), statistics(kl))
    ours.add(row("default"), statistics(0.25 * kl))
    found = table(gather([ours, peers]), ["default"])
    assert found.count("mended") == 1
    lines = table(gather([peers, ours]), ["default"]).splitlines()
    assert sum("mended" in line for line in lines) == 1
    assert "### W3 g64" in lines
    [line] = [line for line in lines if line.startswith("| peer ")]
    assert "0.25 (0.25 – 0.25); 0.25" in line
    assert "- broken: ImportError: needs torch 3" in lines


def test_inputs_survive_the_file(tmp_path: Path) -> None:
    inputs = [{"input_ids": torch.arange(i + 3)[None], "pixel_values": torch.rand(1, 3, 2, 2)} for i in range(12)]
    answers = [[(1, i + 2), (i + 2, i + 3)] for i in range(12)]
    write_inputs(tmp_path / "x.safetensors", inputs, answers)
    found, spans = read_inputs(tmp_path / "x.safetensors")
    assert spans == answers
    for one, other in zip(inputs, found):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_checked() -> None:
    path = "model.language_model.layers.0.mlp.up_proj"
    norm = "model.language_model.layers.0.norm.weight"
    generator = seeds.generator()
    original = {
        f"{path}.weight": torch.rand(4, 128, generator=generator),
        norm: torch.ones(4),
        "lm_head.weight": torch.rand(4, 4, generator=generator),
    }
    rounded = {**original, f"{path}.weight": (original[f"{path}.weight"] * 7).round() / 7}
    assert check_weights(original, rounded, [path], 64) == {"levels": 8, "linears": 1, "changed": []}
    assert check_weights(original, {**rounded, norm: 2 * torch.ones(4)}, [path], -1)["changed"] == [norm]
    with pytest.raises(RuntimeError, match=r"lm_head.weight is outside"):
        check_weights(original, {**rounded, "lm_head.weight": torch.zeros(4, 4)}, [path], 64)
    with pytest.raises(RuntimeError, match="did not change"):
        check_weights(original, original, [path], 64)
    with pytest.raises(RuntimeError, match=r"lm_head.weight is missing: quantized"):
        check_weights(original, {name: rounded[name] for name in (f"{path}.weight", norm)}, [path], 64)
    with pytest.raises(RuntimeError, match="quantized 0 linears"):
        check_weights(original, rounded, [], 64)


def test_experts_are_checked_one_by_one_and_their_router_is_not_asked_for() -> None:
    mlp, generator = "model.language_model.layers.0.mlp", seeds.generator()
    names = [f"{mlp}.experts.{expert}.{name}_proj" for expert in range(2) for name in ("gate", "up", "down")]
    stacks = {
        f"{mlp}.experts.gate_up_proj": torch.rand(2, 32, 64, generator=generator),
        f"{mlp}.experts.down_proj": torch.rand(2, 64, 16, generator=generator),
        f"{mlp}.gate.weight": torch.rand(2, 64, generator=generator),
        f"{mlp}.shared_expert_gate.weight": torch.rand(1, 64, generator=generator),
    }
    original = unstacked(stacks)
    assert torch.equal(original[f"{mlp}.experts.1.up_proj.weight"], stacks[f"{mlp}.experts.gate_up_proj"][1, 16:])
    again = stacked(original)
    assert again.keys() == stacks.keys()
    assert all(torch.equal(again[name], stacks[name]) for name in stacks)

    rounded = {name: (w * 7).round() / 7 if "experts" in name else w for name, w in original.items()}
    assert check_weights(original, rounded, names, -1) == {"levels": 8, "linears": 6, "changed": []}
    with pytest.raises(RuntimeError, match="quantized 5 linears, not the blocks' 6"):
        check_weights(original, rounded, names[1:], -1)


def test_answers_reach_our_recipes_as_labels(tmp_path: Path) -> None:
    from accuracy_data import spans_of
    from accuracy_peers import Job
    from accuracy_peers.qaig import _labelled

    labels = torch.tensor([[-100, 5, 6, -100, -100, 9]])
    spans = spans_of(labels[0] != -100)
    assert spans == [(1, 3), (5, 6)]
    assert spans_of(torch.zeros(4, dtype=torch.bool)) == []
    path = tmp_path / "samples.safetensors"
    write_inputs(path, [{"input_ids": torch.tensor([[4, 5, 6, 7, 8, 9]])}], [spans])
    [sample] = _labelled(Job("mbq", "", 3, 64, 16, str(path), "", ""))
    assert torch.equal(sample["labels"], labels)
