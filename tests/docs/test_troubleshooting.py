"""The troubleshooting page holds the package's messages, and every error that a user can meet."""

import ast
import re
from pathlib import Path

from tests.docs.pages import ROOT, cells

PACKAGES = [ROOT / "transformers_qaig", ROOT / "transformers_qaig_cli"]
PAGE = ROOT / "docs/guides/troubleshooting.md"
HOLE = "\0"
READ_BY_USERS = ("cli", "config", "data", "integrations", "loading", "plan", "quantizer", "report")
"""Rooms that read what users give. In the others an error names an argument of a function, which these rooms pass."""
ELSEWHERE = {
    "config/attributes.py": "says that an attribute does not exist, as Python does",
    "data/fetch.py": "what is too large: the limit comes behind it",
    "loading/unused_tensors.py": "becomes a warning",
    "plan/allocate.py": "a cost that the package measured itself",
    "plan/build.py": "the package allocates first",
    "quantizer/bit_costs/cost_store.py": "says in a warning why a file of the work folder is not read",
    "report/record_file.py": "comes behind `is no report of a quantized model`",
    "report/summary.py": "says that an attribute does not exist, as Python does",
}
"""File → why some of its messages have no row of their own."""


def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """What the page quotes of this package's messages; each hole matches anything."""
    quoted = [
        " ".join(found).strip()
        for row in cells(PAGE)
        if "(from " not in row[0]  # another library
        for found in re.findall(r"`` (.+?) ``|(?<!`)`([^`]+)`(?!`)", row[0])
    ]
    return [
        (quote, re.compile(".*?".join(re.escape(part.strip()) for part in quote.split("…") if part.strip()), re.DOTALL))
        for quote in quoted
    ]


def test_the_messages_in_troubleshooting_are_in_the_code() -> None:
    known = [text for package in PACKAGES for path in package.rglob("*.py") for text in messages(path)]
    quotes = patterns()
    assert len(quotes) > 100
    assert not [quote for quote, pattern in quotes if not any(pattern.search(text) for text in known)]


def test_every_error_that_a_user_can_meet_has_a_row() -> None:
    """Errors whose message is made elsewhere, or is only what another error says, have no words to look for."""
    known = [pattern for quote, pattern in patterns() if len(quote.replace("…", "").strip()) >= 8]
    files = [PACKAGES[0] / room for room in READ_BY_USERS] + PACKAGES[1:]
    missing = [
        (path.relative_to(ROOT).as_posix(), message.replace(HOLE, "…"))
        for folder in files
        for path in sorted(folder.rglob("*.py"))
        for message in raised(path)
        if not any(pattern.search(message) for pattern in known)
    ]
    assert not [found for found in missing if found[0].removeprefix("transformers_qaig/") not in ELSEWHERE]
    assert {file.removeprefix("transformers_qaig/") for file, _ in missing} == set(ELSEWHERE), "no longer needed"


def raised(path: Path) -> list[str]:
    """The messages of a module's errors that have some words of their own."""
    calls = [node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
    found = [text(call.args[0]) for call in calls if isinstance(call, ast.Call) and call.args]
    return [message for message in found if len(re.findall(r"[a-z]{2,}", message)) >= 2]


def messages(path: Path) -> list[str]:
    """Every string of a module; what is filled in is a hole."""
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = [text(node) for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))]
    return [re.sub(r"%[sdr]", HOLE, found) for found in texts if len(found) > 8]


def text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(text(value) if isinstance(value, ast.Constant) else HOLE for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left) + text(node.right)
    return HOLE
