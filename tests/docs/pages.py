"""The project's Markdown: pages, their code, their tables, their prose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "csrc/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN = "<!-- run -->"
_FENCE = re.compile(r"^(?P<run><!-- run -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """
    A fenced block of code.

    Attributes:
        language: as the fence says, `python` for one.
        text: without the fences.
        runs: whether the comment before it says that a test runs it.
    """

    language: str
    text: str
    runs: bool


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    return [Block(m["language"], m["text"], m["run"] is not None) for m in _FENCE.finditer(page.read_text())]


def prose(page: Path) -> list[str]:
    """The sentences of paragraphs and lists; tables, code, headings, formulas, pictures and comments left out."""
    text = _FENCE.sub("\n\n", page.read_text())
    text = re.sub(r"\$\$.*?\$\$|<!--.*?-->|!\[[^\]]*\]\([^)]*\)|\{[^}]*markdown[^}]*\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|\[\[?|\]", "", text)
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith(("|", "#", "<", "@", "--8<--", "!!!")):
            paragraphs.append([])
            continue
        if re.match(r"[-*] |\d+\. ", bare):
            paragraphs.append([])
        paragraphs[-1].append(re.sub(r"^([-*]|\d+\.) ", "", bare))
    whole = (" ".join(lines) for lines in paragraphs if lines)
    return [sentence for text in whole for sentence in re.split(r"(?<=[.!?:;])\s+(?=[\"'`*(A-Z0-9])", text)]


def cells(page: Path) -> list[list[str]]:
    """The rows of all tables, heads included."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
