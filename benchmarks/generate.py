"""
Prefill and decode of a random 3 B VLM on the CPU: bfloat16 against packed layers and bitsandbytes' 4 bits.

    python benchmarks/generate.py --threads 2 > rows.jsonl

The model is a LLaVA whose language model has the shapes of Qwen2.5-VL-3B (2,048 wide, 36 layers, 151,936 words, tied
head), with a small tower. Its weights are random, and so are the codes of our layers, which were not rounded from
weights: packing billions of them takes minutes, and neither speed nor size depends on them. Embeddings, head and tower
are bfloat16 in every variant. "On disk" is what the tensors of the saved checkpoint take. Each variant is a process of
its own, so that peak memory is its own; all take turns `--rounds` times, and ratios are to bfloat16 in the same round.
One JSON line per variant and round, a table of medians on standard error.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from ledger import provenance
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear

# Language models by size: the shapes of Qwen2.5-VL's, once with few words, and one that only exercises scripts.
_SIZE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "3b": dict(zip(_SIZE, (151_936, 2048, 11_008, 36, 16, 2, True))),
    "7b": dict(zip(_SIZE, (152_064, 3584, 18_944, 28, 28, 4, False))),
    "3b-blocks": dict(zip(_SIZE, (1024, 2048, 11_008, 36, 16, 2, True))),
    "tiny": dict(zip(_SIZE, (1024, 256, 512, 2, 4, 2, True))),
}
IMAGE_TOKEN = {"3b": 151_000, "7b": 151_000, "3b-blocks": 1000, "tiny": 1000}
VARIANTS = ("bf16", *(f"w{bits}a{a}" for bits in (2, 3, 4, 8) for a in (16, 8)), "bitsandbytes-nf4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens, 256 of them an image's")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--profile", action="store_true", help="say where the time of decoding goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    print(json.dumps(provenance()), flush=True)
    rows = []
    for number in range(options.rounds):
        for variant in options.variants:
            child = [sys.executable, __file__, *sys.argv[1:], "--child", variant]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout) if done.returncode == 0 else {"variant": variant, "failed": done.returncode}
            rows.append({**row, "round": number})
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows), file=sys.stderr)


def build(
    variant: str, group_size: int, size: str = "3b", layers: int | None = None, device: torch.device | str = "cpu"
) -> LlavaForConditionalGeneration:
    text = Qwen2Config(max_position_embeddings=4096, **SIZES[size])
    if layers is not None:
        text.num_hidden_layers, text.layer_types = layers, text.layer_types[:layers]
    vision = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=224,
        patch_size=14,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN[size], vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    if variant != "bf16":
        for name, module in list(model.model.language_model.layers.named_modules()):
            if isinstance(module, nn.Linear):
                model.model.language_model.layers.set_submodule(name, packed(module, variant, group_size).to(device))
    fill(model, device)
    for module in model.modules():
        if isinstance(module, QAIGLinear):
            module.to_kernel_layout()
    return model.eval()


def packed(linear: nn.Linear, variant: str, group_size: int) -> nn.Module:
    has_bias = linear.bias is not None
    if variant.startswith("bitsandbytes"):
        return nf4(linear.in_features, linear.out_features, has_bias)
    bits, activation_bits = map(int, variant[1:].split("a"))
    layer = QAIGLinear(
        linear.in_features, linear.out_features, has_bias, bits=bits, group_size=group_size,
        activation_bits=activation_bits, dtype=torch.bfloat16,
    )  # fmt: skip
    for name in ("weight_packed", "weight_zero_point"):  # any bits are codes
        getattr(layer, name).random_(-(2**31), 2**31 - 1)
    layer.weight_scale.fill_(0.03 / 2**bits)
    return layer


_nf4: dict[tuple[int, int], Any] = {}


def nf4(in_features: int, out_features: int, bias: bool) -> nn.Module:
    """A bitsandbytes layer; layers of one shape are copies, because quantizing takes long."""
    import bitsandbytes

    if (in_features, out_features) not in _nf4:
        layer = bitsandbytes.nn.Linear4bit(
            in_features, out_features, bias, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            torch.randn(out_features, in_features, dtype=torch.bfloat16) * 0.02, requires_grad=False, quant_type="nf4"
        )
        _nf4[in_features, out_features] = layer.to(torch.bfloat16).to("cpu")
    return copy.deepcopy(_nf4[in_features, out_features])


def fill(model: LlavaForConditionalGeneration, device: torch.device | str = "cpu") -> None:
    """Gives every tensor that is still on meta random values, of one pool: drawing billions takes minutes."""
    pool = (torch.randn(1 << 22).bfloat16() * 0.02).to(device)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                flat = value.view(-1)
                for start in range(0, flat.numel(), pool.numel()):
                    flat[start : start + pool.numel()] = pool[: min(pool.numel(), flat.numel() - start)]
                if parameter.ndim == 1 and name == "weight":
                    value.fill_(1)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                setattr(module, name, torch.arange(buffer.numel(), device=device).view(buffer.shape).to(buffer.dtype))
    text = model.config.text_config
    rotary = type(model.model.language_model.rotary_emb)(text).to(device)
    model.model.language_model.rotary_emb = rotary
    model.tie_weights()


@torch.no_grad()
def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    model = build(variant, options.group_size, layers=options.layers)
    ids = torch.randint(0, 150_000, (1, options.prompt))
    ids[:, 8 : 8 + 256] = IMAGE_TOKEN["3b"]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 224, 224).bfloat16()}

    def prefill() -> Any:
        return model(**inputs, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)

    prefill()  # warm
    times = []
    for _ in range(3):
        start = time.perf_counter()
        output = prefill()
        times.append(time.perf_counter() - start)
    steps = []
    for _ in range(options.new_tokens):
        token = output.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
    if options.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=14), file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "variant": variant,
        "threads": options.threads,
        "prompt": options.prompt,
        "prefill_tokens_per_s": options.prompt / statistics.median(times),
        "decode_tokens_per_s": 1 / statistics.median(steps),
        "weights_mib": sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values()) / 2**20,
        "disk_mib": checkpoint_bytes(model) / 2**20,
        "peak_rss_mib": peak / 1024,
        "cpu_isa": extension.cpu_isa(),
    }


def checkpoint_bytes(model: nn.Module) -> int:
    """Of the tensors in checkpoint layout, without a tied head. One module at a time, since that layout is a copy."""
    modules = dict(model.named_modules())
    if model.config.text_config.tie_word_embeddings:
        del modules["lm_head"]
    total = 0
    for module in modules.values():
        if not list(module.children()):
            total += sum(tensor.nbytes for tensor in module.state_dict().values())
        else:
            total += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return total


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the rounds; ratios to bfloat16 within a round."""
    rows = [row for row in rows if "failed" not in row]
    base = {row["round"]: row for row in rows if row["variant"] == "bf16"}
    lines = [
        "| | prefill tokens/s | × bf16 | decode tokens/s | × bf16 | weights MiB | on disk MiB | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        cells = [variant]
        for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            cells.append(f"{statistics.median(row[key] for row in mine):.1f}")
            ratios = [row[key] / base[row["round"]][key] for row in mine if row["round"] in base]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        for key in ("weights_mib", "disk_mib", "peak_rss_mib"):
            cells.append(f"{statistics.median(row[key] for row in mine):,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
