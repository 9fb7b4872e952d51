"""What `make check` runs exists: these files run once a day, and a file that moved would only be missed then."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "tools").glob("*.*"), *(ROOT / ".github").rglob("*.yml")]
NAMED = re.compile(r"(?<![\w./-])(?:tests|tools|benchmarks|examples|docs|csrc)/[\w/.-]*\w")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_that_it_names_exists(file):
    named = set(NAMED.findall(file.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("folder", ["benchmarks", "tools", "examples", "transformers_qaig"])
def test_nothing_imports_the_tests(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert not [path for path in files if re.search(r"^\s*(from|import) tests\b", path.read_text(), re.MULTILINE)]
