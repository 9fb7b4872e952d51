"""
Tables and the picture of one or several files that `accuracy.py` wrote.

    python benchmarks/accuracy_table.py peers.jsonl ours.jsonl --ours default best --plot accuracy.png

A method's figures are means over its calibration sets. A ratio divides the mean KL of ours by that of a peer; its 95 %
interval is a bootstrap over pictures, paired: both are seen on the same resampled pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_ledger import Ledger, key_of

from transformers_qaig.report.comparison import Row, plot
from transformers_qaig.report.statistics import AnswerStatistics, paired_ratio, pooled

Setting = tuple[int, int, int]
Group = tuple[Setting, str]
"""(bits, activation bits, group size), method."""


def gather(ledgers: Sequence[Ledger]) -> dict[Group, list[tuple[dict[str, Any], AnswerStatistics | None]]]:
    """
    Every method's rows at every setting, with their figures; errors have none. Of a row that several ledgers have, the
    last with figures counts.
    """
    rows: dict[str, tuple[dict[str, Any], AnswerStatistics | None]] = {}
    for ledger in ledgers:
        for row in ledger.rows:
            if "error" not in row:
                rows[key_of(row)] = row, ledger.statistics(row)
            else:
                rows.setdefault(key_of(row), (row, None))
    groups: dict[Group, list[tuple[dict[str, Any], AnswerStatistics | None]]] = {}
    for row, statistics in rows.values():
        group = (row["bits"], row["activation_bits"], row["group_size"]), row["method"]
        groups.setdefault(group, []).append((row, statistics))
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def ratios(
    ours: Sequence[tuple[dict[str, Any], AnswerStatistics | None]],
    peer: Sequence[tuple[dict[str, Any], AnswerStatistics | None]],
) -> tuple[tuple[float, float | None, float | None], dict[Any, float]] | None:
    """
    KL of ours over the peer's.

    Only calibration sets that both have count; a method that reads none is set against each of the other's.

    Returns:
        (ratio, lower, upper) over all sets, and calibration set → ratio; None if they share no set.
    """
    a, b = ({row["calibration"]: figures for row, figures in rows if figures is not None} for rows in (ours, peer))
    a_reads, b_reads = ("-" not in figures for figures in (a, b))
    shared = [first for first in (a if a_reads else b) if not (a_reads and b_reads) or first in b]
    pairs = {first: (a.get(first, a.get("-")), b.get(first, b.get("-"))) for first in shared}
    pairs = {first: pair for first, pair in pairs.items() if None not in pair}
    if not pairs:
        return None
    above, below = (pooled([pair[side] for pair in pairs.values()]) for side in (0, 1))
    each = {first: paired_ratio(*pair)[0] for first, pair in pairs.items()}
    return paired_ratio(above, below), each


def comparison_rows(groups: dict[Group, Any]) -> list[Row]:
    """What `report.comparison` takes: one row per method and setting, pooled over its calibration sets."""
    found = []
    for (setting, name), rows in groups.items():
        measured = [(row, figures) for row, figures in rows if figures is not None]
        if measured:
            row = measured[0][0]
            pool = pooled([figures for _, figures in measured])
            line = name if setting[1] == 16 else f"{name}, {setting[1]}-bit activations"
            found.append(Row(line, title(setting), pool, row["bits_per_weight"], row["file_bytes"]))
    return found


def title(setting: Setting) -> str:
    bits, activation_bits, group_size = setting
    group = f"g{group_size}" if group_size > 0 else "per channel"
    return f"W{bits}{f'A{activation_bits}' if activation_bits < 16 else ''} {group}"


def table(groups: dict[Group, Any], ours: Sequence[str]) -> str:
    lines: list[str] = []
    for setting in dict.fromkeys(setting for setting, _ in groups):
        lines += [f"\n### {title(setting)}\n"]
        lines += [
            "| method | bits | MB | KL | exact match |" + "".join(f" {name} / it |" for name in ours) + " s | MiB |"
        ]
        lines += ["|" + "---|" * (7 + len(ours))]
        errors = []
        for (_, name), rows in ((group, rows) for group, rows in groups.items() if group[0] == setting):
            measured = [(row, figures) for row, figures in rows if figures is not None]
            if not measured:
                errors.append(f"- {name}: {rows[0][0]['error'].strip().splitlines()[-1][:300]}")
                continue
            kl = pooled([figures for _, figures in measured]).summary()["kl"]
            cells = [
                name,
                f"{measured[0][0]['bits_per_weight']:.2f}",
                f"{measured[0][0]['file_bytes'] / 1e6:.2f}",
                f"{kl['mean']:.6f}" + ("" if kl["standard_error"] is None else f" ± {kl['standard_error']:.6f}"),
                f"{_mean(measured, 'exact_match'):.3f}",
                *(_ratio(ratios(groups.get((setting, our), []), rows) if our != name else None) for our in ours),
                f"{_mean(measured, 'seconds'):.0f}",
                f"{_mean(measured, 'peak_rss_mib'):.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *errors] if errors else []
    return "\n".join(lines)


def _mean(measured: Sequence[tuple[dict[str, Any], Any]], name: str) -> float:
    return sum(row[name] for row, _ in measured) / len(measured)


def _ratio(found: tuple[tuple[float, float | None, float | None], dict[Any, float]] | None) -> str:
    if found is None:
        return "–"
    (ratio, lower, upper), each = found
    interval = "too few" if lower is None else f"{lower:.2f} – {upper:.2f}"
    return f"{ratio:.2f} ({interval}); " + ", ".join(f"{one:.2f}" for one in each.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--ours", nargs="*", default=["default", "best"], help="methods to divide by every other")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args()
    groups = gather([Ledger(path) for path in options.files])
    print(table(groups, options.ours))
    if options.plot:
        plot(comparison_rows(groups), options.plot)


if __name__ == "__main__":
    main()
