"""
A training step of LoRA on the CPU: packed weights, bfloat16, and bitsandbytes' nf4 (QLoRA).

    pip install peft bitsandbytes
    python benchmarks/lora.py --threads 2 > rows.jsonl

The model is `--layers` blocks with the shapes of Qwen2.5-VL-3B's (2,048 wide) and a small vocabulary, so that the
blocks are most of it. Weights are random, as in `generate.py`. Adapters of rank 16, float32, are on all linears of the
blocks; AdamW steps. There is one sample, text only. Each variant is a process of its own. Its memory is the largest
anonymous resident set during the steps, sampled every 2 ms; "above" is what of it the model did not hold before.
One JSON line per variant, number of tokens and round on standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from generate import build
from grad_input import CLOCKS
from ledger import PACKAGES, provenance
from peft import LoraConfig, get_peft_model

from transformers_qaig.kernels import extension

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.anonymous_memory import peak_rss_anon, rss_anon

MIB = 2**20

VARIANTS = {"bf16": "bf16", "w4": "w4a16", "w3": "w3a16", "bitsandbytes-nf4": "bitsandbytes-nf4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="of a round, after one that is not counted")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread, on a busy machine")
    parser.add_argument("--size", default="3b-blocks", choices=["3b-blocks", "tiny"])
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: it adds up the time of all threads")
    if options.child:
        variant, tokens = options.child
        print(json.dumps(measure(variant, int(tokens), options)))
        return
    print(json.dumps(provenance((*PACKAGES, "peft", "bitsandbytes"))), flush=True)
    for number in range(options.rounds):
        for tokens in options.tokens:
            for variant in options.variants:
                child = [sys.executable, __file__, *sys.argv[1:], "--child", variant, str(tokens)]
                done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
                print(json.dumps(json.loads(done.stdout) | {"round": number}), flush=True)


def measure(variant: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    empty = rss_anon()
    base = build(VARIANTS[variant], group_size=128, size=options.size, layers=options.layers)
    layers = r".*language_model.*_proj"
    model = get_peft_model(base, LoraConfig(target_modules=layers, r=16, lora_alpha=32)).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    ids = torch.randint(0, 1000, (1, tokens))
    seconds, clock = [], CLOCKS[options.clock]
    before = rss_anon()
    with peak_rss_anon() as peak:
        for _ in range(1 + options.steps):
            start = clock()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(clock() - start)
    return {
        "variant": variant,
        "tokens": tokens,
        "threads": options.threads,
        "clock": options.clock,
        "layers": options.layers,
        "step_s": statistics.median(seconds[1:]),
        "model_mib": (before - empty) / MIB,
        "added_mib": (peak[0] - before) / MIB,
        "cpu_isa": extension.cpu_isa(),
    }


if __name__ == "__main__":
    main()
