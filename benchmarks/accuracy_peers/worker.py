"""One job in a process of its own: `python -m accuracy_peers.worker JOB.json`, run in the folder `benchmarks`.

Writes into the job's folder `weights.safetensors`: the model's state dict in float32, quantized weights dequantized;
`answers.safetensors`: logits of the library's own model; `facts.json`, last: what was found, or the error.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from accuracy_peers import Job, Unavailable, method
from accuracy_peers.tensors import Inputs, Spans, read_inputs

CHECKED = 8
"""Calibration samples whose logits by the library's own model are kept, to compare with its dequantized weights."""
LIBRARIES = (
    *("torch", "transformers", "auto-round", "llmcompressor", "compressed-tensors", "bitsandbytes", "hqq"),
    *("optimum-quanto", "optimum", "gptqmodel", "transformers-qaig"),
)


class Witness:
    """Sees which token sequences and pictures enter the model while it is calibrated."""

    def __init__(self, samples: list[Inputs]) -> None:
        self.known = {_digest(sample["input_ids"]) for sample in samples}
        self.tables: dict[int, Counter[str]] = {}
        self.pictures = 0

    def __enter__(self) -> Witness:
        self.forwards = nn.Embedding.forward, nn.Conv2d.forward
        embed, convolve = self.forwards

        def watched_embed(module: nn.Embedding, ids: Tensor) -> Tensor:
            if ids.dim() == 2 and ids.device.type != "meta":
                self.tables.setdefault(id(module), Counter()).update(_digest(row[None]) for row in ids)
            return embed(module, ids)

        def watched_convolve(module: nn.Conv2d, pixels: Tensor) -> Tensor:
            self.pictures += len(pixels)
            return convolve(module, pixels)

        nn.Embedding.forward, nn.Conv2d.forward = watched_embed, watched_convolve  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        nn.Embedding.forward, nn.Conv2d.forward = self.forwards  # type: ignore[method-assign]

    def facts(self) -> dict[str, int]:
        """Token sequences that are and are not samples, of the table that saw most samples (others hold positions)."""
        seen = max(self.tables.values(), key=lambda table: len(self.known & table.keys()), default=Counter())
        return {
            "samples_distinct": len(self.known),
            "samples_seen": len(self.known & seen.keys()),
            "strangers_seen": len(seen.keys() - self.known),
            "pictures_seen": self.pictures,
        }


def _digest(ids: Tensor) -> str:
    return hashlib.sha1(ids.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def logits_of(model: nn.Module, inputs: list[Inputs], spans: list[Spans]) -> Tensor:
    """Logits before each token of the spans, one after the other, float32 `[tokens, V]`; no batching, no padding."""
    rows = []
    for one, parts in zip(inputs, spans):
        logits = model(**one, use_cache=False).logits
        rows += [logits[0, start - 1 : stop - 1].float() for start, stop in parts]
    return torch.cat(rows)


def run(job: Job) -> dict[str, Any]:
    samples, _ = read_inputs(job.samples)
    module = importlib.import_module(f"accuracy_peers.{method(job.method).module}")
    before, started = _peak_rss(), time.process_time()
    with Witness(samples) as witness:
        made = module.quantize(job, samples)
    facts = {
        "seconds": made.seconds,
        "cpu_seconds": time.process_time() - started,  # of the processor, loading included
        "peak_rss_mib": _peak_rss(),
        "rss_before_mib": before,
        "bits_per_weight": made.bits_per_weight,
        "settings": made.settings,
        **witness.facts(),
        "linears": sorted(made.linears),
    }
    model = made.model.eval()
    whole: list[Spans] = [[(1, one["input_ids"].shape[1])] for one in samples[:CHECKED]]
    answers = {"check": logits_of(model, samples[:CHECKED], whole)}
    if job.questions:
        answers["answers"] = logits_of(model, *read_inputs(job.questions))
    save_file(answers, job.folder / "answers.safetensors")
    weights = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)  # a tied head shares its memory
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.dtype == torch.float32
    }
    weights.update({f"{path}.weight": values.detach().float().contiguous() for path, values in made.linears.items()})
    save_file(weights, job.folder / "weights.safetensors")
    return facts


def _peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        facts = run(job)
    except Unavailable as error:
        facts = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        facts = {"error": f"{type(error).__name__}: {error}"}
    facts["versions"] = _versions()
    facts["threads"] = torch.get_num_threads()
    path = job.folder / "facts.json"
    path.with_suffix(".tmp").write_text(json.dumps(facts))
    os.replace(path.with_suffix(".tmp"), path)


if __name__ == "__main__":
    main()
