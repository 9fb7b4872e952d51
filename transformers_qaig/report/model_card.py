"""Writes the model card of a quantized model: what was done to it and how to load it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import PushToHubMixin

from ..config import QAIGConfig
from ..nn.experts_layout import count_open_stacks, count_weights
from ..utils.files import write
from ..utils.readable import readable_time
from .sizes import HEAD, part_rows
from .summary import QuantizationReport

MARK = "<!-- Written by transformers-qaig. Without this line the card is kept when the model is pushed again. -->"

_LOADING = """## How to load it

transformers-qaig is not on PyPI. Install it from a clone of its repository:

```bash
pip install torch && pip install .
```

```python
import transformers_qaig  # first: Transformers cannot read these weights without it
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{repo_id}")
```

Or `AutoModelForImageTextToText.from_pretrained("{repo_id}")`, as with any other model."""


def model_card(
    config: Any,
    report: QuantizationReport | None = None,
    base_model_id: str | None = None,
    *,
    repo_id: str | None = None,
    size_in_bytes: int | None = None,
    tags: Iterable[str] = (),
) -> str:
    """Returns the Markdown of a README.md, with the Hub's metadata in front.

    Args:
        config: the `QAIGConfig`, or its dict from config.json.
        report: of the run that quantized the model; None for a model that was loaded already quantized.
        base_model_id: Hub id of the unquantized model. A local folder is not named.
        repo_id: where the card goes; named in the lines that load the model.
        size_in_bytes: of all weight files.
        tags: more tags for the Hub.
    """
    settings = QAIGConfig.from_dict(config) if isinstance(config, Mapping) else config
    assert isinstance(settings, QAIGConfig)
    base = (
        base_model_id if base_model_id and base_model_id.count("/") == 1 and not Path(base_model_id).exists() else None
    )
    data = ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["qaig", *(tag for tag in tags if tag != "qaig")],
    )
    subject = f"[{base}](https://huggingface.co/{base})" if base else "A vision-language model"
    licence = f"\n\nThe licence of {base} holds for these weights too." if base else ""
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---\n{MARK}",
                f"# {(repo_id or base or 'Quantized vision-language model').split('/')[-1]}",
                f"{subject}: the weights of its {_parts(settings)} are packed to {_widths(settings)} by "
                f"transformers-qaig.{licence}",
                _LOADING.format(repo_id=repo_id or "path/or/id"),
                "## What was done",
                _markdown([("", ""), *_facts(settings, report, size_in_bytes)]),
                *(["## Size", _sizes(report)] if report is not None else []),
            ]
        )
        + "\n"
    )


def save_model_card(model: Any, directory: str | os.PathLike[str], base_model_id: str | None = None) -> Path:
    """Writes the card of a quantized `model`, saved in `directory`, to README.md there; returns that path."""
    directory = Path(directory)
    card = model_card(
        model.config.quantization_config,
        getattr(model, "qaig_report", None),
        base_model_id,
        size_in_bytes=_weight_bytes(directory),
    )
    write(directory / "README.md", card)
    return directory / "README.md"


def attach_model_card(model: Any, base_model_id: str | None = None, processor: Writable | None = None) -> None:
    """Makes `model.push_to_hub` upload this package's card, and the model's processor.

    Both ways to the Hub, `push_to_hub` and `save_pretrained(push_to_hub=True)`, write an unfilled template to README.md
    beside the weights, and then call `model._upload_modified_files`. There is no public hook between the two. So this
    one object gets a method that writes the card and goes on. A card that somebody else wrote is kept.

    Args:
        model: quantized; its class is left alone.
        base_model_id: Hub id of the unquantized model.
        processor: writes its files into the folder that is uploaded.
    """
    model._upload_modified_files = _UploadWithCard(
        type(model).__name__,
        model.config.quantization_config,
        getattr(model, "qaig_report", None),
        base_model_id,
        processor,
    )


def detach_model_card(model: Any) -> None:
    """Undoes [`attach_model_card`] except for the processor: the card no longer describes the model."""
    upload = vars(model).get("_upload_modified_files")
    if isinstance(upload, _UploadWithCard):
        model._upload_modified_files = replace(upload, config=None, report=None, base_model_id=None)


class Writable(Protocol):
    """Something that writes files of its own into a folder."""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes its files into `folder`."""
        ...


@dataclass
class _UploadWithCard:
    """Writes the card before an upload.

    It holds no model: the model that it is attached to can be copied, pickled and freed as before.
    """

    class_name: str
    config: Any  # None: no card is due
    report: QuantizationReport | None
    base_model_id: str | None
    processor: Writable | None = None

    def __call__(self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any) -> Any:
        folder = Path(working_dir)
        readme = folder / "README.md"
        is_whole_model = (folder / "config.json").is_file()  # else only an adapter is pushed
        if is_whole_model and self.processor is not None:
            self.processor.write(folder)
        if is_whole_model and self.config is not None and is_replaceable(readme, ours_too=self.report is not None):
            known = ModelCard.load(readme).data.tags if readme.is_file() else None
            card = model_card(
                self.config,
                self.report,
                self.base_model_id,
                repo_id=repo_id,
                size_in_bytes=_weight_bytes(folder),
                tags=known or [],
            )
            write(readme, card)
        if kwargs.get("commit_message") is None:
            kwargs["commit_message"] = f"Upload {self.class_name}"
        return PushToHubMixin()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def is_replaceable(readme: Path, *, ours_too: bool) -> bool:
    """Whether a README.md is missing, the Hub's unfilled template, or (if `ours_too`) ours."""
    if not readme.is_file():
        return not readme.exists()
    try:
        card = ModelCard.load(readme, ignore_metadata_errors=True)
    except (OSError, ValueError):  # it is no text, and so not ours
        return False
    if MARK in card.text:
        return ours_too
    blank = "\0"
    start, end = ModelCard.from_template(ModelCardData(), model_description=blank).text.split(blank)
    return card.text.strip().startswith(start.strip()) and card.text.strip().endswith(end.strip())


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
            data = f"{report.num_samples} conversations, {report.num_tokens:,} tokens"
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
    plan, widths = settings.plan or {}, Counter[int]()
    for path, count in count_weights(plan).items():
        widths[plan[path]["bits"]] += count
    if len(widths) < 2:
        return f"{next(iter(widths), settings.bits)} bits"
    return " and ".join(f"{bits} bits ({count} layers)" for bits, count in sorted(widths.items()))


def _weight_bytes(folder: Path) -> int | None:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None
