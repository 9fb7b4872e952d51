"""How long recipes calibrate beside other libraries, in the same run, on the same samples.

    python benchmarks/calibration_time.py --models tiny-vlm half-billion --rounds 3 > rows.jsonl

Each method runs in a process of its own, in its library's environment (`accuracy_peers/setup.sh`), one after the other,
round by round. `cpu_seconds` is processor time from the load of the model to the last weight:
other programs hardly change it. `half-billion` is a random language model of two blocks with the widths of one of 0.5B
parameters, and 32 texts of 512 tokens. The tiny VLM has 128 scenes. One JSON line a method and round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from accuracy import MODELS, run
from accuracy_data import data_of
from accuracy_peers import Job, method
from accuracy_peers.common import load
from accuracy_peers.tensors import write_inputs
from ledger import provenance

from transformers_qaig.kernels import extension

VOCABULARY, TEXTS, TOKENS, SCENES = 4096, 32, 512, 128


def half_billion(work: Path) -> Path:
    """Makes the random language model and its samples."""
    folder = work / "half-billion"
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    ids = torch.randint(0, VOCABULARY, (TEXTS, 1, TOKENS))
    inputs = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    write_inputs(work / "half-billion.safetensors", inputs, [[(1, TOKENS)]] * TEXTS)
    return folder


def tiny_vlm(work: Path) -> Path:
    """Writes the first calibration set of the accuracy benchmark."""
    folder = MODELS["tiny-vlm"]
    data = data_of("scenes", folder, load(str(folder), torch.float32))
    write_inputs(work / "tiny-vlm.safetensors", *data.samples(0, SCENES))
    return folder


MADE: dict[str, Callable[[Path], Path]] = {"tiny-vlm": tiny_vlm, "half-billion": half_billion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MADE, default=list(MADE))
    parser.add_argument("--methods", nargs="+", default=["gptq", "default", "llm-compressor-gptq-asym"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder that setup.sh made")
    parser.add_argument("--timeout", type=float, default=3600)
    options = parser.parse_args()
    extension.load()  # compiled once, before anything is timed
    print(json.dumps(provenance() | {"options": vars(options) | {"environments": None}}), flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name in options.models:
            folder = MADE[name](Path(work))
            for round_ in range(options.rounds):
                for asked in options.methods:
                    row = _row(name, asked, folder, Path(work), options)
                    print(json.dumps({"model": name, "round": round_, **row}), flush=True)


def _row(model: str, asked: str, folder: Path, work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Quantizes once, and says how long it took."""
    environment = method(asked).environment
    python = str(options.environments / environment / "bin" / "python") if environment else sys.executable
    with tempfile.TemporaryDirectory(dir=work) as output:
        samples = str(work / f"{model}.safetensors")
        facts = run(Job(asked, str(folder), options.bits, 64, 16, samples, "", output), python, options.timeout)
    if "error" in facts:
        sys.exit(f"{asked}: {facts['error']}")
    seconds = {name: facts[name] for name in ("seconds", "cpu_seconds", "threads")}
    return {"method": asked, "bits": options.bits, **seconds, "library": facts["versions"]}


if __name__ == "__main__":
    main()
