"""Puts the page together from a checked record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ...utils.readable import readable_size, readable_time
from ..record import progress_line
from .charts import Line, chart
from .markup import data_script, escaped, section, table
from .samples import lengths, samples
from .strips import strips
from .treemap import treemap

RELOAD_SECONDS = 30
"""How often the page of a running calibration reloads itself, in seconds."""
MOST_ROWS = 16
"""A longer table is folded."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page loads nothing, whatever is in it."""
ERRORS_NOTE = (
    "‖quantized − full precision‖² / ‖full precision‖² of each block's output. Each model has its own inputs. "
    "Entering: the same of the block's inputs, which is what earlier blocks left."
)
_ERROR_LINES = (
    ("output", "error", "one"),
    ("entering", "entering", "two"),
    ("at pictures", "pictures", "three"),
    ("at text", "text", "four"),
)


def page(record: Mapping[str, Any]) -> str:
    """Returns the page of a record that [`checked`][transformers_qaig.report.record_file.checked] returned."""
    targets, prices = record["targets"], record["prices"]
    is_running = len(targets) < record["targets_in_all"]
    done = {target["path"] for target in targets}
    layers = [layer for layer in record["layers"] if not is_running or layer["block"] in done] or record["layers"]
    script_data = {
        "targets": targets,
        "token_weights": record["token_weights"],
        "views": [{key: view[key] for key in ("grid", "picture_tokens")} for view in record["views"]],
    }
    errors = _errors(targets)
    body = [
        f"<h1>{escaped(record['model'] or 'Quantized model')}</h1>",
        f'<p class="note">{escaped(progress_line(record)) if targets else "read from the saved model"}; '
        f"recipe {escaped(record['recipe'] or 'unknown')}; {escaped(record['written_by'])}</p>",
        _tiles(record),
        section(
            "Size", treemap(record["sizes"]), _size_table(record["sizes"]), name="size",
            note="Areas are bytes of the saved weights. Packed parts are coloured.",
        ),
        section(
            "Bits by layer", strips(layers), name="bits",
            note="A column is a block: click it for more. A stack of experts is one cell: the mean.",
        ),
        section(
            "Error by block" if errors else "Block", errors, '<div id="details"></div>' if targets else "",
            name="errors", note=ERRORS_NOTE if errors else "Choose one above. No error was measured.",
        ),
        section("What a bit buys", front_chart(prices), name="front", note="The best plan at each size, as predicted.")
        if prices else "",
        section("Calibration data", lengths(record["lengths"]), samples(record), name="data", note=_data_note(record)),
        section("Rejected", _rejected(targets), name="rejected", note=(
            "A step that does not lower the error on validation samples is undone."
        )),
        section("Time and memory", _resources(record), name="resources"),
        section("All facts", table(("", ""), record["facts"], numbers=2), name="facts") if record["facts"] else "",
        section("How to repeat it", f"<pre>{escaped(record['repeat'])}</pre>", name="repeat")
        if record["repeat"] else "",
    ]  # fmt: skip
    return document(record["model"] or "Quantized model", body, script_data, reload=is_running)


def document(title: str, body: Sequence[str], data: Any, *, reload: bool = False) -> str:
    """Returns a whole HTML file.

    Args:
        title: plain text.
        body: HTML.
        data: for the script; None: the page has no script.
        reload: whether the page reloads itself from time to time.
    """
    here = files(__package__)
    script = ""
    if data is not None:
        script = data_script("record", data) + f"<script>{(here / 'script.js').read_text(encoding='utf-8')}</script>"
    refresh = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if reload else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}<title>{escaped(title)}</title>'
        f"<style>{(here / 'style.css').read_text(encoding='utf-8')}</style></head><body>{''.join(body)}"
        f"<footer>Written by transformers-qaig. This page is one file, and loads nothing.</footer>{script}"
        "</body></html>\n"
    )


def _tiles(record: Mapping[str, Any]) -> str:
    before, after = (sum(part[when] for part in record["sizes"]) for when in ("before", "after"))
    tiles = [
        (readable_size(8 * after) if after else "", "size of the weights"),
        (f"{before / after:.2f} ×" if before > after > 0 else "", "smaller"),
        (f"{record['bits_per_weight']:.2f}" if record["bits_per_weight"] else "", "stored bits a packed weight"),
        (f"{record['samples'] or len(record['lengths'])}" if record["lengths"] else "", "calibration samples"),
        (readable_time(record["seconds"]) if record["seconds"] else "", "time"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{escaped(value)}</b><span>{escaped(what)}</span></div>' for value, what in tiles if value
    )
    return f'<div class="tiles">{shown}</div>'


def _size_table(sizes: Sequence[Mapping[str, Any]]) -> str:
    rows = [(part["name"], ", ".join(map(str, part["bits"])) or "–", *_sizes(part)) for part in sizes]
    return f"<details><summary>table</summary>{table(('part', 'bits', 'before', 'after'), rows)}</details>"


def _sizes(part: Mapping[str, Any]) -> list[str]:
    return [readable_size(8 * part[when]) for when in ("before", "after")]


def _errors(targets: Sequence[Mapping[str, Any]]) -> str:
    x = list(range(len(targets)))
    paths = [target["path"] for target in targets]
    lines = [Line(name, x, [t[key] for t in targets], kind, blocks=paths) for name, key, kind in _ERROR_LINES]
    drawn = chart(lines, "target, in the order of calibration", "relative squared error")
    if not drawn:
        return ""
    keys = [key for _, key, _ in _ERROR_LINES]
    rows = [(t["path"], *(_scientific(t[key]) for key in keys), readable_time(t["seconds"] or 0)) for t in targets]
    head = ("target", *(name for name, _, _ in _ERROR_LINES), "time")
    return f"{drawn}<details><summary>table</summary>{table(head, rows)}</details>"


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"


def front_chart(prices: Mapping[str, Any]) -> str:
    """Returns predicted loss against size, with the knee and the plan that was taken."""
    front, uniform, chosen = prices["front"], prices["uniform"], prices["chosen"]
    if not front:
        return ""
    knee = front[prices["knee"]]
    low, high = front[0][0] - 0.5, front[-1][0] + 0.5
    uniform = [point for point in uniform if low <= point[0] <= high]
    marks = [(knee[0], knee[2], f"knee: {knee[0]:.2f} bits")] if knee[2] > 0 else []
    if chosen is not None and chosen[2] > 0:
        near = bool(marks) and abs(chosen[0] - knee[0]) < 0.02
        words = f"this model: {chosen[0]:.2f} bits"
        marks = [(chosen[0], chosen[2], f"{words}, the knee" if near else words), *([] if near else marks)]
    lines = [
        Line("chosen layer by layer", [p[0] for p in front], [p[2] for p in front], "one"),
        Line("one width everywhere", [p[0] for p in uniform], [p[2] for p in uniform], "two", dots=True),
    ]
    rows = [(f"{bits:.2f}", readable_size(8 * size), _scientific(loss)) for bits, size, loss in front]
    drawn = chart(lines, "stored bits a weight", f"predicted loss ({prices['cost']})", marks=marks)
    if not drawn:
        return ""
    return f"{drawn}<details><summary>table</summary>{table(('bits', 'model', 'loss'), rows, numbers=0)}</details>"


def _data_note(record: Mapping[str, Any]) -> str:
    left_out = f", {len(record['left_out'])} left out" if record["left_out"] else ""
    tokens = sum(record["lengths"])
    return f"{len(record['lengths'])} samples, {tokens:,} tokens{left_out}." if record["lengths"] else ""


def _rejected(targets: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (t["path"], str(t["accepted"]), str(t["rejected"]), str(len(t["to_nearest"])), str(sum(t["averaged"].values())))
        for t in targets
        if t["rejected"] or t["to_nearest"] or t["averaged"]
    ]
    if not rows:
        return ""
    steps = "".join(
        f"<li>{escaped(target['path'])}: {escaped(step)}</li>"
        for target in targets
        for step in target["rejected_steps"]
    )
    listed = f"<details><summary>every rejected step</summary><ul>{steps}</ul></details>" if steps else ""
    shown = table(("target", "accepted", "rejected", "to nearest", "experts averaged"), rows)
    if len(rows) > MOST_ROWS:
        shown = f"<details><summary>{len(rows)} targets</summary>{shown}</details>"
    return shown + listed


def _resources(record: Mapping[str, Any]) -> str:
    rows = [(name, readable_time(seconds)) for name, seconds in record["times"].items() if seconds]
    parts = [table(("part", "time"), rows)] if rows else []
    memory = [target["memory"] for target in record["targets"] if target["memory"]]
    if memory:
        facts = [("process, after a target, at most", readable_size(8 * max(memory)))]
        device = max(target["device_memory"] for target in record["targets"])
        facts += [("accelerator, at most", readable_size(8 * device))] if device else []
        paused = record["bytes_per_sample"]
        facts += [("a paused sample, on average", readable_size(8 * paused))] if paused else []
        bars = "".join(
            f'<i style="height:{100 * value / max(memory):.0f}%" title="{escaped(readable_size(8 * value))}"></i>'
            for value in memory
        )
        parts += [table(("memory", ""), facts), f'<h3>memory after each target</h3><div class="bars">{bars}</div>']
    return "".join(parts)
