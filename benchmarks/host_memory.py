"""
Anonymous memory that quantizing takes, of a checkpoint several times as large.

    python benchmarks/host_memory.py --checkpoints plain cast experts --recipes rtn gptq default > results.jsonl
    python benchmarks/host_memory.py --checkpoints experts --recipes best --hidden 1024 --layers 1 --expert-memory 25MB

Each row is a process of its own. It quantizes a random text model from a folder and saves it, while a thread reads
RssAnon of /proc/self/status every few milliseconds. Pages that the kernel can read again from a file do not count.
What the libraries and the modules' objects take is counted before and subtracted: a narrow model of as many layers
is quantized first. Its packed weights are not subtracted.

| checkpoint | what its files hold |
| --- | --- |
| plain | the model's own dtype and tensors |
| cast | float32, loaded in bfloat16 |
| experts | each expert's weights, which Transformers joins to stacks |

`bound_bytes` is the packed model, two blocks in float32, and the hidden states of the samples in two models.
`predicted_bytes` is what `--dry-run` says. It counts second moments and the grids that are tried, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ledger import provenance
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from transformers_qaig import QAIGConfig
from transformers_qaig.cli.dry_run import estimate_for
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.utils.memory import return_freed_memory

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.anonymous_memory import peak_rss_anon, rss_anon

CHECKPOINTS, RECIPES = ("plain", "cast", "experts"), ("rtn", "gptq", "default", "best")
SAMPLES, TOKENS, EXPERTS, STEPS = 8, 128, 16, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES[:3]))
    parser.add_argument("--work-dir", nargs="+", choices=("yes", "no"), default=["no", "yes"])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--inner", type=int, default=0, help="channels of an expert; 0: as many weights as dense")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--expert-memory", default="", help="such as 25MB; a share of what is free by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(Path(options.child), options)))
        return
    print(json.dumps(provenance() | {"options": vars(options)}), flush=True)
    for checkpoint in options.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), checkpoint, options)
            for recipe in options.recipes:
                for work_dir in options.work_dir:
                    command = [sys.executable, __file__, "--child", folder, "--checkpoints", checkpoint]
                    command += ["--recipes", recipe, "--work-dir", work_dir, "--bits", str(options.bits)]
                    command += ["--experts", str(options.experts), "--inner", str(options.inner)]
                    command += ["--expert-memory", options.expert_memory]
                    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
                    print(found.splitlines()[-1], flush=True)


def config_of(checkpoint: str, hidden: int, layers: int, options: argparse.Namespace) -> Any:
    """The shapes of a model: a dense one, or one with experts."""
    shapes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(hidden // 64, 1),
        "num_key_value_heads": max(hidden // 256, 1),
        "head_dim": 64,
        "vocab_size": 1024,
        "dtype": torch.bfloat16,
    }
    if checkpoint != "experts":
        return Qwen3Config(intermediate_size=4 * hidden, **shapes)
    inner = options.inner or max(4 * hidden // options.experts, 128)
    return Qwen3MoeConfig(num_experts=options.experts, num_experts_per_tok=2, moe_intermediate_size=inner, **shapes)


def make(folder: Path, checkpoint: str, options: argparse.Namespace) -> None:
    """Writes a checkpoint of random weights, in several files."""
    config = config_of(checkpoint, options.hidden, options.layers, options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if checkpoint == "cast":
        model = model.float()
    model.save_pretrained(folder, max_shard_size="100MB")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Quantizes and saves one checkpoint in this process."""
    (checkpoint,), (recipe,), (work_dir,) = options.checkpoints, options.recipes, options.work_dir
    with tempfile.TemporaryDirectory() as scratch:
        narrow = Path(scratch, "narrow")
        small = config_of(checkpoint, 128, AutoConfig.from_pretrained(folder).num_hidden_layers, options)
        AutoModelForCausalLM.from_config(small, dtype=torch.bfloat16).save_pretrained(narrow)
        first = quantize(narrow, settings(recipe, options, None))
        first.save_pretrained(Path(scratch, "narrow-saved"))
        return_freed_memory()
        base, start = rss_anon() - bytes_in(Path(scratch, "narrow-saved")), time.perf_counter()
        del first
        with peak_rss_anon() as loading:
            model = quantize(folder, settings(recipe, options, Path(scratch, "work") if work_dir == "yes" else None))
        seconds, after = time.perf_counter() - start, rss_anon()
        with peak_rss_anon() as saving:
            model.save_pretrained(Path(scratch, "saved"), max_shard_size="20MB")
        packed = bytes_in(Path(scratch, "saved"))
    with torch.device("meta"):
        full = AutoModelForCausalLM.from_config(model_config := AutoConfig.from_pretrained(folder))
    estimate = estimate_for(full, settings(recipe, options, scratch if work_dir == "yes" else None), TOKENS)
    block = max(sum(p.numel() for p in each.parameters()) for each in find_decoder_blocks(full).values())
    streams = 0 if recipe == "rtn" else 2 * SAMPLES * TOKENS * model_config.hidden_size * 2
    return {
        "task": checkpoint,
        "recipe": recipe,
        "work_dir": work_dir,
        "expert_memory": options.expert_memory,
        "checkpoint_bytes": bytes_in(folder),
        "packed_bytes": packed,
        "block_float32_bytes": 4 * block,
        "bound_bytes": packed + 8 * block + streams,
        "predicted_bytes": estimate.memory + estimate.device_memory,
        "peak_bytes": loading[0] - base,
        "after_bytes": after - base,
        "saving_peak_bytes": saving[0] - base,
        "seconds": round(seconds, 1),
    }


def quantize(folder: Path, config: QAIGConfig) -> Any:
    """Quantizes the model in a folder, in bfloat16."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)


def settings(recipe: str, options: argparse.Namespace, work_dir: str | Path | None) -> QAIGConfig:
    """The configuration, with random samples where the recipe reads any."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 1000, (1, TOKENS), generator=generator) for _ in range(SAMPLES)]
    dataset = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    return QAIGConfig(
        bits=options.bits,
        recipe={"name": recipe, "steps": STEPS} if recipe == "best" else recipe,
        group_size=128,
        num_samples=SAMPLES,
        dataset=None if recipe == "rtn" else dataset,
        calibration={"work_dir": work_dir, "expert_memory": options.expert_memory or None},
    )


def bytes_in(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
