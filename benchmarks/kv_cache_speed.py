"""
How long a token takes with a long context, whose keys and values Transformers' caches hold in bfloat16 or quantized.

    pip install optimum-quanto hqq
    python benchmarks/kv_cache_speed.py > rows.jsonl

The model has random weights in the shapes of Qwen2.5-VL-3B's language model, packed at 4 bits, but fewer layers. Random
keys and values stand for the context: neither speed nor size depends on them. One JSON line a cache on standard output:
the least of some tokens' times, after two that do not count. `cpu_seconds` is what the processors spent in all threads:
with one thread, the time on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from generate import SIZES, build
from kv_cache import CACHES
from ledger import PACKAGES, provenance
from transformers import DynamicCache, QuantizedCache

from transformers_qaig.kernels import extension


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=6, help="that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="3b")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(provenance((*PACKAGES, "optimum-quanto", "hqq"))), flush=True)
    model = build("w4a16", 128, options.size, options.layers).model.language_model
    for name in options.caches:
        seconds, cpu_seconds = seconds_a_token(model, CACHES[name], options)
        row = {"cache": name, "context": options.context, "layers": options.layers, "threads": options.threads}
        row |= {"cpu_isa": extension.cpu_isa()}
        print(json.dumps(row | {"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


@torch.no_grad()
def seconds_a_token(model: Any, settings: dict[str, Any] | None, options: argparse.Namespace) -> tuple[float, float]:
    """Wall time and processor time."""
    config = model.config
    cache = DynamicCache(config=config) if settings is None else QuantizedCache(config=config, **settings)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(options.layers):
        keys, values = torch.randn(2, 1, config.num_key_value_heads, options.context, width, dtype=torch.bfloat16)
        cache.update(keys, values, layer)
    times: list[tuple[float, float]] = []
    for position in range(options.context, options.context + 2 + options.tokens):
        token, where = torch.randn(1, 1, config.hidden_size, dtype=torch.bfloat16), torch.tensor([[position]])
        start = time.perf_counter(), time.process_time()
        model(inputs_embeds=token, position_ids=where, cache=cache, use_cache=True)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    assert cache.get_seq_length() == options.context + len(times)
    wall, processor = zip(*times[2:])
    return min(wall), min(processor)


if __name__ == "__main__":
    main()
