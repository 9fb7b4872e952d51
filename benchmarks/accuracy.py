"""
How much of a model's answers survives: our recipes and other libraries, on the same samples and questions.

    python benchmarks/accuracy.py ours.jsonl --methods rtn fast --widths W2 W3 --first-picture 10000
    python benchmarks/accuracy.py peers.jsonl --methods peers
    python benchmarks/accuracy.py experts.jsonl --model tiny-vlm-moe --methods rtn gptq default llm-compressor-gptq-asym
    python benchmarks/accuracy.py qwen.jsonl --model tiny-vlm-qwen --methods rtn gptq default
    python benchmarks/accuracy.py story.jsonl --model out/story --data own --group-size 32 --samples 64
    python benchmarks/accuracy.py mine.jsonl --model path/to/vlm --data chats.jsonl --calibration 0 --first-picture 128
    python benchmarks/accuracy_table.py peers.jsonl ours.jsonl

`--data` is `scenes` for our examples, which are harder for tiny-vlm-qwen, or `own` for texts that a language model
samples from itself. Else it is a file of conversations, one a line, and --calibration and --first-picture are line
numbers. `story_model.py` makes out/story.

Each row is a process of its own (`accuracy_peers/worker.py`), in the environment of its library (`accuracy_peers/
setup.sh`). It is skipped if the output has it: stop and start again as you like. `NAME-uniform`, `NAME-qig` and
`NAME-shuffled` are recipe NAME with those token weights. `default-attributed` has widths of its own, in all of the
stored size of the width that is named. `NAME-path` and others have those of `accuracy_peers/
token_weights.py`, `altered_weights.py` and `routing_weights.py`.

One evaluation serves all. Of a weight-only method it takes the dequantized weights, in float32. With 8-bit activations
the library's own model answers the questions, in float32 too. Checked of each method:

- embeddings, head, projector and tower are the original's;
- every group of weights has at most 2^bits values;
- on eight samples the dequantized weights say what the library's own model says;
- which samples entered the model during calibration.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accuracy_checks import check_weights, stacked, unstacked
from accuracy_data import data_of
from accuracy_ledger import Ledger, cells
from accuracy_peers import PEERS, RECIPES, Job, method
from accuracy_peers.common import load
from accuracy_peers.tensors import read_inputs, write_inputs
from ledger import provenance
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from transformers_qaig.report.evaluate import AnswerStatistics, answer_logits, answer_statistics

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
MODELS = {name: EXAMPLES / name / "model" for name in ("tiny-vlm", "tiny-vlm-moe", "tiny-vlm-qwen")}
NEGLIGIBLE = 0.05
"""Share of a method's KL by which its dequantized weights may differ from its own model: kernels round too."""


class Bench:
    """The full-precision model, the questions, and its answers: made once."""

    def __init__(self, model: Path, data: str, pictures: range, samples: int, work: Path) -> None:
        self.model, self.work, self.samples = model, work, samples
        self.full = load(str(model), torch.float32)
        self.data = data_of(data, model, self.full)
        self.questions = self.data.questions(pictures.start, len(pictures))
        self.reference = answer_logits(self.full, self.questions)

    def samples_file(self, first: int | str) -> Path:
        """The calibration set from this seed on; for methods that read none, the first one, for the checks."""
        first = first if isinstance(first, int) else 0
        path = self.work / f"samples-{first}.safetensors"
        if not path.exists():
            write_inputs(path, *self.data.samples(first, self.samples))
        return path

    def questions_file(self) -> Path:
        path = self.work / "questions.safetensors"
        if not path.exists():
            write_inputs(path, [q.inputs for q in self.questions], [[(q.start, q.stop)] for q in self.questions])
        return path

    def measure(
        self, cell: Mapping[str, Any], python: str, timeout: float
    ) -> tuple[dict[str, Any], AnswerStatistics | None]:
        """The row of a cell, and its figures per question if it has any."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            job = Job(
                method=cell["method"],
                model=str(self.model),
                bits=cell["bits"],
                group_size=cell["group_size"],
                activation_bits=cell["activation_bits"],
                samples=str(self.samples_file(cell["calibration"])),
                questions=str(self.questions_file()) if self._answers_itself(cell) else "",
                output=folder,
            )
            facts = run(job, python, timeout)
            if "error" in facts:
                return facts, None
            try:
                return self._figures(job, facts)
            except RuntimeError as error:
                return {"error": str(error)}, None

    @staticmethod
    def _answers_itself(cell: Mapping[str, Any]) -> bool:
        return cell["activation_bits"] < 16 or method(cell["method"]).answers_itself

    def _figures(self, job: Job, facts: dict[str, Any]) -> tuple[dict[str, Any], AnswerStatistics | None]:
        weights, answers = (load_file(job.folder / f"{name}.safetensors") for name in ("weights", "answers"))
        linears = facts.pop("linears")
        originals = unstacked(self.full.state_dict())
        weights = unstacked(weights)
        weights = {name: weights[name] for name in originals if name in weights}
        facts |= check_weights(originals, weights, linears, job.group_size)
        # Weights that are stored in another basis are on their grid there, not in the model's own.
        widest = facts["settings"].get("widest", job.bits)
        if facts["levels"] > 2**widest and not facts["settings"].get("rotated"):
            raise RuntimeError(f"{job.method}: a group has {facts['levels']} values, more than {widest} bits can say.")
        dense = copy.deepcopy(self.full)
        dense.load_state_dict(stacked(weights), strict=False)
        facts["own_model_kl"] = self._difference(dense, answers["check"], job)
        model: torch.nn.Module | Sequence[Tensor] = dense
        if job.questions:
            model = list(answers["answers"].split([q.stop - q.start for q in self.questions]))
        statistics = answer_statistics(model, None, self.questions, reference=self.reference)
        summary = statistics.summary()
        if not job.questions and facts["own_model_kl"] > NEGLIGIBLE * summary["kl"]["mean"]:
            raise RuntimeError(
                f"{job.method}: KL {facts['own_model_kl']:.2g} from its own model to its dequantized weights, "
                f"{summary['kl']['mean']:.2g} to full precision: they are not the same model. If there is more to it "
                "than weights, set answers_itself."
            )
        packed = sum(originals[f"{path}.weight"].numel() for path in linears)
        others = sum(tensor.numel() for tensor in originals.values()) - packed
        facts |= {
            "questions": len(self.questions),
            "file_bytes": round(2 * others + facts["bits_per_weight"] * packed / 8),
            "kl": summary["kl"]["mean"],
            "kl_se": summary["kl"]["standard_error"],
            **{name: summary[name]["mean"] for name in ("agreement", "perplexity", "exact_match")},
            "kl_by_task": {task: figures["kl"]["mean"] for task, figures in summary["tasks"].items()},
        }
        return facts, statistics

    @torch.no_grad()
    def _difference(self, dense: torch.nn.Module, check: Tensor, job: Job) -> float:
        """Mean KL from the library's own model to its dequantized weights, over the positions it was asked about."""
        rows = []
        samples, _ = read_inputs(job.samples)
        for sample in samples:
            if sum(map(len, rows)) == len(check):
                break
            rows.append(dense(**sample, use_cache=False).logits[0, :-1])
        own, ours = (log_softmax(logits, dim=-1) for logits in (check, torch.cat(rows)))
        return kl_div(ours, own, reduction="batchmean", log_target=True).item()


def run(job: Job, python: str, timeout: float) -> dict[str, Any]:
    """What the worker found, or its error."""
    request = job.folder / "job.json"
    request.write_text(json.dumps(asdict(job)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, "-m", "accuracy_peers.worker", str(request)]
    try:
        ended = subprocess.run(command, cwd=HERE, env=environment, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout:.0f} s"}
    except OSError as error:
        return {"error": f"{python} cannot be run: {error}"}
    path = job.folder / "facts.json"
    if not path.exists():
        return {"error": f"the process ended with code {ended.returncode}: {ended.stderr[-500:]}"}
    facts = json.loads(path.read_text())
    if "error" in facts:
        print(ended.stderr[-2000:], file=sys.stderr)
    return facts


def width(text: str) -> tuple[int, int]:
    """`W4A8` → (4, 8), `W3` → (3, 16)."""
    found = re.fullmatch(r"W(\d)(?:A(8|16))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"a width is like W3 or W4A8, got {text!r}")
    return int(found[1]), int(found[2] or 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a .jsonl file; figures per question go into .npz beside it")
    parser.add_argument("--model", default="tiny-vlm", help=f"{', '.join(MODELS)} or a folder; an output holds one")
    parser.add_argument("--data", default="scenes", help="scenes, own, or a .jsonl file of conversations")
    parser.add_argument("--methods", nargs="+", default=["peers", "recipes"], help="names; `peers` and `recipes`: all")
    parser.add_argument("--widths", type=width, nargs="+", default=[(2, 16), (3, 16), (4, 16), (4, 8)], metavar="W4A8")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calibration", type=int, nargs="+", default=[0, 3000, 6000], help="first seeds")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=500, help="from seed --first-picture on, 2 or 3 questions each")
    parser.add_argument("--first-picture", type=int, default=20_000)
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder that setup.sh made")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that one row may take")
    parser.add_argument("--retry", action="store_true", help="make rows again that ended with an error")
    options = parser.parse_args()

    names = [n for name in options.methods for n in {"peers": PEERS, "recipes": RECIPES}.get(name, [name])]
    methods = {name: method(name) for name in names}
    ledger = Ledger(options.output)
    folder = MODELS.get(options.model, Path(options.model).absolute())  # a worker runs in another folder
    model = options.model if options.model in MODELS else folder.name
    if any(row.get("model", "tiny-vlm") != model for row in ledger.rows):
        parser.error(f"{options.output} has rows of another model: use a new file")
    todo = cells(methods, options.widths, options.calibration, options.samples, options.group_size)
    todo = [cell for cell in todo if not ledger.has(cell, options.retry)]
    with tempfile.TemporaryDirectory() as work:
        pictures = range(options.first_picture, options.first_picture + options.pictures)
        origin = {key: value for key, value in provenance().items() if key != "versions"}  # the method says those
        bench = Bench(folder, options.data, pictures, options.samples, Path(work))
        for number, cell in enumerate(todo):
            environment = methods[cell["method"]].environment
            python = (
                str(options.environments.absolute() / environment / "bin/python") if environment else sys.executable
            )
            facts, statistics = bench.measure(cell, python, options.timeout)
            row = {
                **cell,
                "model": model,
                "data": options.data if options.data in ("scenes", "own") else Path(options.data).name,
                **facts,
                "first_picture": options.first_picture,
                "pictures": options.pictures,
                **origin,
            }
            ledger.add(row, statistics)
            told = facts.get("error") or f"KL {facts['kl']:.6f}, {facts['seconds']:.0f} s"
            print(f"{number + 1}/{len(todo)} {cell}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
