"""Writes the model card of a quantized model: what was done to it and how to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from ..config import QAIGConfig
from ..nn.experts_layout import count_open_stacks, count_weights
from ..utils.readable import readable_time
from .base_model import BaseModel
from .card_name import FOLDER, MARK, title_of
from .engines import repository, vllm_row
from .hub_names import HUB, dataset_id
from .sizes import HEAD, part_rows
from .summary import QuantizationReport

_LOADING = """## How to load it

transformers-qaig is not on PyPI. Install it from a clone of {repository}:

```bash
pip install torch && pip install .
```

```python
import transformers_qaig  # first: Transformers cannot read these weights without it
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{repo_id}")
image = {{"type": "image", "image": "picture.png"}}
chat = [{{"role": "user", "content": [image, {{"type": "text", "text": "Describe the picture."}}]}}]
print(pipe(text=chat, return_full_text=False)[0]["generated_text"])
```

Or `AutoModelForImageTextToText.from_pretrained("{repo_id}")`, as with any other model.

| for | run |
| --- | --- |
| {vllm_for} | {vllm_run} |
| llama.cpp, MLX, or vLLM without this package | `transformers-qaig export FOLDER OUT --format gguf`, `mlx`, \
`compressed-tensors`; a format that cannot hold these weights is refused |
| fine-tuning with PEFT | `get_peft_model(model, LoraConfig(target_modules="all-linear"))` |

FOLDER is where the files of this model lie."""


def model_card(
    config: Any,
    report: QuantizationReport | None = None,
    base: BaseModel | None = None,
    *,
    repo_id: str | None = None,
    size_in_bytes: int | None = None,
    tags: Iterable[str] = (),
) -> str:
    """Returns the Markdown of a README.md, with the Hub's metadata in front.

    Args:
        config: the `QAIGConfig`, or its dict from config.json.
        report: of the run that quantized the model; None for a model that was loaded already quantized.
        base: the unquantized model. A local folder is not named.
        repo_id: where the card goes; named in the lines that load the model.
        size_in_bytes: of all weight files.
        tags: more tags for the Hub.
    """
    settings = QAIGConfig.from_dict(config) if isinstance(config, Mapping) else config
    assert isinstance(settings, QAIGConfig)
    name = base.repo_id if base is not None else None
    taken_over: dict[str, Any] = dict(base.metadata) if base is not None else {}
    ours = ["qaig", f"{_usual_bits(settings)}-bit"]
    data = ModelCardData(
        base_model=name,
        base_model_relation="quantized" if name else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        datasets=[data] if report is not None and (data := dataset_id(settings.dataset)) else None,
        tags=[*ours, *(tag for tag in tags if tag not in ours)],
        **taken_over,
    )
    address = repo_id or FOLDER
    vllm_for, vllm_run = vllm_row(address)
    how_to_load = _LOADING.format(repo_id=address, repository=repository(), vllm_for=vllm_for, vllm_run=vllm_run)
    subject = f"[{name}]({HUB}/{name})" if name else "A vision-language model"
    licence = f"\n\nThe licence of {name} holds for these weights too." if name else ""
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---\n{MARK}",
                f"# {title_of(repo_id, name)}",
                f"{subject}: the weights of its {_parts(settings)} are packed to {_widths(settings)} by "
                f"transformers-qaig.{licence}",
                how_to_load,
                "## What was done",
                _markdown([("", ""), *_facts(settings, report, size_in_bytes)]),
                *(["## Size", _sizes(report)] if report is not None else []),
            ]
        )
        + "\n"
    )


def _facts(
    settings: QAIGConfig, report: QuantizationReport | None, size_in_bytes: int | None
) -> Iterable[tuple[str, str]]:
    changed = ", ".join(f"`{name}={value!r}`" for name, value in settings.recipe.changes.items())
    yield "Recipe", f"`{settings.recipe.name}`" + (f" with {changed}" if changed else "")
    yield "Weights", _widths(settings)
    yield "Scales", _scales(settings)
    if settings.plan:
        counts = count_weights(settings.plan)
        stacks = count_open_stacks(counts)
        layers = sum(counts.values())
        yield "Packed layers", str(layers) + (f", {stacks} of which are stacks of experts" if stacks else "")
    if report is not None:
        if report.num_samples:
            data = f"{report.num_samples} conversations{_origin(settings.dataset)}, {report.num_tokens:,} tokens"
            yield "Calibration", f"{data}, {readable_time(report.seconds)}"
        yield from ((name.capitalize(), value) for name, value in report.facts())
    if size_in_bytes is not None:
        yield "Size of the weight files", f"{size_in_bytes:,} bytes"


def _sizes(report: QuantizationReport) -> str:
    rows = [row.cells() for row in part_rows(report.coverage, report.plan)]
    return _markdown([HEAD, *((f"`{part}`" if " " not in part else part, *others) for part, *others in rows)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Makes a table, the first row its head."""
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *others])


def _parts(settings: QAIGConfig) -> str:
    names = {"vision_bits": "vision tower", "lm_head_bits": "head", "embedding_bits": "embeddings"}
    *others, last = ["language model", *(name for key, name in names.items() if getattr(settings, key))]
    if settings.budget is not None and settings.budget.counts_file:
        others, last = [*others, last], "other parts, as a budget chose,"
    return f"{', '.join(others)} and {last}" if others else last


def _scales(settings: QAIGConfig) -> str:
    """Returns `one per 64 input channels, asymmetric`; where layers differ, each kind with its number of layers."""
    chosen = settings.plan or {"": vars(settings)}
    kinds: Counter[tuple[int, bool]] = Counter()
    for path, count in count_weights(chosen).items():
        kinds[chosen[path]["group_size"], chosen[path]["sym"]] += count
    texts = []
    for (group, sym), count in kinds.most_common():
        text = f"one per {f'{group} input channels' if group > 0 else 'output channel'}"
        text += ", symmetric" if sym else ", asymmetric"
        texts.append(text if len(kinds) == 1 else f"{text} ({count} layers)")
    return "; ".join(texts)


def _widths(settings: QAIGConfig) -> str:
    """Returns `3 bits`, or for a mixed plan `3 bits (40 layers) and 8 bits (2 layers)`."""
    widths = _counts(settings)
    if len(widths) < 2:
        return f"{next(iter(widths), settings.bits)} bits"
    return " and ".join(f"{bits} bits ({count} layers)" for bits, count in sorted(widths.items()))


def _usual_bits(settings: QAIGConfig) -> int:
    """Returns the width of most packed layers."""
    widths = _counts(settings)
    return widths.most_common(1)[0][0] if widths else settings.bits


def _counts(settings: QAIGConfig) -> Counter[int]:
    """Counts the packed layers of each width."""
    plan, widths = settings.plan or {}, Counter[int]()
    for path, count in count_weights(plan).items():
        widths[plan[path]["bits"]] += count
    return widths


def _origin(dataset: Any) -> str:
    name = dataset_id(dataset)
    return " of the bundled set" if dataset is None else f" of `{name}`" if name else ""
