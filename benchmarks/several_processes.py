"""
How much faster several processes calibrate than one, with a thread each, and whether they pack the same bits.

    python benchmarks/several_processes.py --recipes gptq default --processes 1 2 > rows.jsonl

The model is random, with the widths of a small language model. `seconds` is the time of calibration, without loading.
`processor_seconds` is what the busiest process computed, loading included: it says less, but other programs on the
machine hardly change it. One JSON line a run on standard output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from ledger import provenance

from transformers_qaig import QAIGConfig
from transformers_qaig.kernels import extension

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 512, 2048, 2, 512


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


def calibrate(folder: Path, recipe: str, samples: int, tokens: int) -> dict[str, float | str]:
    """What one process sees: seconds of calibration, those of its processor, and a hash of the packed model."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (samples, 1, tokens), generator=generator)
    dataset = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    config = QAIGConfig(bits=3, group_size=64, recipe=recipe, dataset=dataset, num_samples=samples)
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    found = hashlib.blake2b(digest_size=8)
    for _, tensor in sorted(model.state_dict().items()):
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": model.qaig_report.times["calibration"],
        "processor_seconds": used.ru_utime + used.ru_stime - before,
        "bits": found.hexdigest(),
    }


def launched(number: int, arguments: list[str]) -> dict[str, float | str]:
    """What the busiest of several processes prints, with a thread each."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = str(server.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(number), "--master-port", port]
    done = subprocess.run(
        [*(launcher if number > 1 else [sys.executable]), __file__, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len({line["bits"] for line in lines}) != 1 or len(lines) != number:
        raise RuntimeError(f"{number} processes packed different models: {lines}")
    busiest: dict[str, float | str] = max(lines, key=lambda line: line["processor_seconds"])
    return busiest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["gptq", "default"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is not None:
        found = calibrate(options.model, options.recipes[0], options.samples, options.tokens)
        print(json.dumps(found), flush=True)
        return
    print(json.dumps(provenance()), flush=True)
    facts = {"hidden": HIDDEN, "intermediate": INTERMEDIATE, "layers": LAYERS, "cpu_isa": extension.cpu_isa()}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        size = ["--samples", str(options.samples), "--tokens", str(options.tokens)]
        for round_ in range(options.rounds):
            for recipe in options.recipes:
                for number in options.processes:
                    found = launched(number, ["--model", folder, "--recipes", recipe, *size])
                    key = {"recipe": recipe, "processes": number, "round": round_}
                    row = {**key, **facts, "samples": options.samples, "tokens": options.tokens, **found}
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
