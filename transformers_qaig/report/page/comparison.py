"""The page of an evaluation: figures in all and by task, and the questions on which two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..text import with_interval
from .markup import escaped, section, table
from .page import document

FIGURES = {
    "exact_match": "answers given exactly",
    "kl": "KL to the reference, nats per token",
    "agreement": "same first choice as the reference",
    "perplexity": "perplexity of the answers",
}
_PAIRED = {
    "exact_match": "answers given exactly, minus the reference's",
    "perplexity": "perplexity, over the reference's",
}
_KINDS = {"lost": "only the reference is right", "gained": "only this model is right", "other": "other first choices"}


def evaluation_page(result: Mapping[str, Any]) -> str:
    """Returns the page of what `transformers-qaig evaluate` found.

    Args:
        result: as the command writes it to JSON.
    """
    shown = [name for name in FIGURES if name in result]
    rows = [("all", result["questions"], *(_figure(result[name]) for name in shown))]
    rows += [(task, f["questions"], *(_figure(f[name]) for name in shown)) for task, f in result["tasks"].items()]
    head = ("task", "questions", *(FIGURES[name] for name in shown))
    reference = result.get("reference")
    body = [
        f"<h1>{escaped(result['model'])}</h1>",
        f'<p class="note">against {escaped(reference)}, on {escaped(result["data"])}</p>' if reference else "",
        section(
            "Figures", table(head, rows), _paired(result),
            note=" ".join(filter(None, ("± one standard error, by bootstrap over conversations.", result.get("note")))),
        ),
    ]  # fmt: skip
    if "changed" in result:
        counts = result["changed_counts"]
        said = "; ".join(f"{counts[kind]} × {words}" for kind, words in _KINDS.items())
        body.append(
            section(
                "Questions that changed", _changes(result["changed"]), name="changed",
                note=f"{said}. p is the probability of the expected answer. An answer ends where it first differs.",
            ) or section("Questions that changed", "<p>None.</p>")
        )  # fmt: skip
    return document(f"Evaluation of {result['model']}", body, None)


def _figure(figure: Mapping[str, float | None]) -> str:
    error = figure["standard_error"]
    return f"{figure['mean']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _paired(result: Mapping[str, Any]) -> str:
    rows = []
    for name, words in _PAIRED.items():
        if name in result.get("paired", {}):
            rows.append((words, with_interval(result["paired"][name], ".4g")))
    if "kl_ratio" in result:
        rows.append((f"KL over that of {result['baseline']}", with_interval(result["kl_ratio"], ".3g")))
    return table(("on the same questions", "95 % interval"), rows) if rows else ""


def _changes(changed: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_change(change) for change in changed)


def _change(change: Mapping[str, Any]) -> str:
    pictures = "".join(
        f'<span class="picture"><img alt="picture" src="data:image/jpeg;base64,{escaped(data)}"></span>'
        for data in change["pictures"]
    )
    task = f", {change['task']}" if change["task"] else ""
    choices = []
    for who, (token, probability) in (("reference", change["reference_choice"]), ("model", change["choice"])):
        choices.append(f"{who} {token!r} with {probability:.3f}")
    rows = [
        ("expected", change["expected"], ""),
        ("reference", change["reference_answer"], f"{change['reference_probability']:.4f}"),
        ("this model", change["answer"], f"{change['probability']:.4f}"),
    ]
    return (
        f'<div class="lost"><p>{escaped(_KINDS.get(change["kind"], change["kind"]))}'
        f" (conversation {escaped(change['conversation'])}{escaped(task)}, KL {change['kl']:.3g})</p>{pictures}"
        f"<p><b>{escaped(change['question'])}</b></p>{table(('', 'answer', 'p'), rows, numbers=2)}"
        f'<p class="note">first difference: {escaped("; ".join(choices))}</p></div>'
    )
