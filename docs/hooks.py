"""Hooks of the documentation's build: the list of the package's files, names in docstrings, formulas."""

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

PACKAGE = Path(__file__).resolve().parents[1] / "transformers_qaig"
FILES = re.compile(r"<!-- files -->.*<!-- /files -->", re.DOTALL)
NAME = re.compile(r"\[(<code>[\w.]+</code>)\](?!\()")
TYPE = re.compile(r"<code>(`[^<]*?)</code>")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Puts the list of the package's files in the place of what the architecture page says to its readers elsewhere."""
    return FILES.sub(lambda _: files(), markdown)


def on_page_content(content: str, **kwargs: Any) -> str:
    """
    Docstrings in Transformers' dialect lose its marks: brackets around names, [`Name`], which are no links here, and
    what it says in a type, `` `int`, *optional*, defaults to 4``. Formulas become MathML, which needs no script.
    """
    return FORMULA.sub(mathml, TYPE.sub(plain_type, NAME.sub(r"\1", content)))


def plain_type(found: re.Match[str]) -> str:
    return f"<code>{re.split(r', [*]optional|, defaults', found[1])[0].replace('`', '')}</code>"


def mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    return f'<{formula[1]} class="formula">{convert(html.unescape(formula[2]), display=display)}</{formula[1]}>'


def files() -> str:
    """Every module of the package with the first line of its docstring, room by room."""
    lines = []
    for room in sorted(path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()):
        modules = sorted(room.rglob("*.py")) if room.is_dir() else [room]
        rows = [f"| `{path.relative_to(PACKAGE)}` | {text} |" for path in modules if (text := first_line(path))]
        if rows:
            lines += [f"\n**`{room.stem}`**\n", "| file | |", "| --- | --- |", *rows]
    return "\n".join(lines)


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, for a cell of a table."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
