"""
Throughput of vLLM's CPU engine on a random model: bfloat16, float32, its own 4 bits, and ours through the plugin.

    python benchmarks/serving.py --engine .venv-vllm/bin/python > rows.jsonl     # after `make vllm`

The shapes are those of Qwen2.5-0.5B, with `--layers` layers; fewer layers get a smaller vocabulary, so that the head
keeps its share. Weights and codes are random: speed does not depend on them. "engine-w4" and "ours-w4" hold the very
same packed tensors, as compressed-tensors and as qaig. Embeddings and the tied head are dense. All is computed in
bfloat16, or in float32 where the name says so. A variant that fails is told in a row and left out: vLLM's build for
AVX2 lacks the product that "engine-w4" needs.

Each variant is a process of its own; all take turns `--rounds` times. Prefill is the time to the first token of all
prompts of a batch together; decode is what the other tokens take. `--clock cpu` counts processor seconds of all
threads, on a busy machine. One JSON line per variant, batch and round, a table of medians on standard error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ledger import provenance

SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
VARIANTS = ("bf16", "fp32", "engine-w4", "ours-w4", "ours-w4-fp32", "ours-w4a8", "ours-w3", "ours-w2", "ours-w8")
GROUP = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=".venv-vllm/bin/python", help="the Python with vLLM")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of all threads")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, default=Path("out/serving"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for row in measure(options.child, options):
            print(json.dumps(row))
        return
    from transformers_qaig.kernels import extension

    print(json.dumps(provenance()), flush=True)
    rows = []
    variants = list(options.variants)
    for variant in variants:
        make(options.folder / f"{variant}-{options.layers}", variant, options.layers)
    for turn in range(options.rounds):
        for variant in list(variants):
            folder = options.folder / f"{variant}-{options.layers}"
            run = {"variant": variant, "round": turn, "cpu_isa": extension.cpu_isa()}
            done = subprocess.run(
                [options.engine, __file__, *sys.argv[1:], "--child", str(folder)],
                env=environment(options.threads), capture_output=True, text=True, timeout=1800,
            )  # fmt: skip
            if done.returncode:
                variants.remove(variant)
                failed = next((line for line in done.stderr.splitlines()[::-1] if "Error" in line), "")[-200:]
                print(json.dumps(run | {"failed": failed}), flush=True)
                print(done.stderr[-4000:], file=sys.stderr)
            for line in done.stdout.splitlines():
                if line.startswith('{"batch"'):
                    rows.append(run | json.loads(line))
                    print(json.dumps(rows[-1]), flush=True)
    for variant in variants:
        for batch in options.batches:
            mine = [row for row in rows if row["variant"] == variant and row["batch"] == batch]
            rates = [statistics.median(row[f"{part}_tokens_per_s"] for row in mine) for part in ("prefill", "decode")]
            print(
                f"{variant:10} batch {batch:3}  prefill {rates[0]:8.1f}  decode {rates[1]:8.1f} tok/s", file=sys.stderr
            )


def environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs in the engine's environment."""
    from vllm import LLM, SamplingParams

    dtype = "float32" if "fp32" in folder.name else "bfloat16"
    clock = time.process_time if options.clock == "cpu" else time.perf_counter  # the engine is in this process
    engine = LLM(
        str(folder), dtype=dtype, max_model_len=512, max_num_seqs=max(options.batches), enforce_eager=True,
        skip_tokenizer_init=True, enable_prefix_caching=False,
    )  # fmt: skip

    def run(batch: int, tokens: int) -> float:
        prompts = [{"prompt_token_ids": [7 + i + j for j in range(options.prompt)]} for i in range(batch)]
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = clock()
        engine.generate(prompts, sampling, use_tqdm=False)
        return clock() - start

    run(1, 4)
    rows = []
    for batch in options.batches:
        first = min(run(batch, 1) for _ in range(2))
        rest = run(batch, options.new_tokens) - first
        rows.append(
            {
                "batch": batch, "threads": options.threads, "layers": options.layers,
                "clock": options.clock, "prompt": options.prompt, "new_tokens": options.new_tokens,
                "vllm": version("vllm-cpu"),
                "prefill_tokens_per_s": round(batch * options.prompt / first, 2),
                "decode_tokens_per_s": round(batch * (options.new_tokens - 1) / rest, 2),
            }
        )  # fmt: skip
    return rows


def make(folder: Path, variant: str, layers: int) -> None:
    """Writes a model of random weights, which holds what a quantized one of these shapes does."""
    import torch
    from safetensors.torch import save_file

    from transformers_qaig.formats.packing import packed_shapes

    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokens = SHAPE["vocab_size"] * layers // SHAPE["num_hidden_layers"]
    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    narrow = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    linears = {
        **{f"self_attn.{name}_proj": (rows, hidden) for name, rows in zip("qkvo", (hidden, narrow, narrow, hidden))},
        **{"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)},
    }
    bits = None if variant in ("bf16", "fp32") else int(variant.partition("-w")[2][0])
    tensors, plan = {"model.norm.weight": torch.ones(hidden)}, {}
    tensors["model.embed_tokens.weight"] = torch.randn(tokens, hidden) * 0.02
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(hidden)
        for name, (rows, columns) in linears.items():
            path = f"model.layers.{layer}.{name}"
            if name[-6] in "qkv" and "self_attn" in name:
                tensors[f"{path}.bias"] = torch.zeros(rows)
            if bits is None:
                tensors[f"{path}.weight"] = torch.randn(rows, columns) * 0.02
                continue
            plan[path] = {"bits": bits, "group_size": GROUP, "sym": False}
            for key, (shape, dtype) in packed_shapes(rows, columns, bits, GROUP, False).items():
                if dtype is None:
                    tensors[f"{path}.{key}"] = torch.full(shape, 0.04 / 2**bits)
                elif key == "weight_shape":
                    tensors[f"{path}.{key}"] = torch.tensor([rows, columns])
                else:
                    tensors[f"{path}.{key}"] = torch.randint(-(2**31), 2**31 - 1, shape, dtype=dtype)
    cast = {k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in tensors.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **SHAPE, "num_hidden_layers": layers, "vocab_size": tokens,
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
        "dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if variant.startswith("ours"):
        activations = 8 if variant.endswith("a8") else 16
        config["quantization_config"] = {
            "quant_method": "qaig", "format_version": 1, "bits": bits, "group_size": GROUP, "recipe": "rtn",
            "activation_bits": activations, "plan": plan,
        }  # fmt: skip
    elif variant == "engine-w4":
        weights = {
            "num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP,
            "dynamic": False,
        }  # fmt: skip
        config["quantization_config"] = {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
            "ignore": ["lm_head"],
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
