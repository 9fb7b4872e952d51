"""The documentation says what the code does: names, messages, commands and links exist."""

import ast
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, cells, name, prose
from transformers_qaig.config.qaig_config import argument_names
from transformers_qaig.config.recipes import RECIPES

PACKAGE = ROOT / "transformers_qaig"
MOST_WORDS = 25


def test_the_readme_fits_on_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    # What a page includes stands on that page: its links count from there.
    included = [(ROOT / path).read_text() for path in re.findall(r'^--8<-- "(.+)"$', page.read_text(), re.MULTILINE)]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join([page.read_text(), *included]))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_sentence_has_more_than_25_words(page: Path) -> None:
    assert not [sentence for sentence in prose(page) if len(sentence.split()) > MOST_WORDS]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_on_a_page_is_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_a_page_tells_to_run_exist(page: Path) -> None:
    for module in re.findall(r"python -m (transformers_qaig[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(module) is not None, module


def test_every_argument_of_the_configuration_is_explained() -> None:
    table = " ".join(row[0] for row in cells(ROOT / "docs/reference/config.md"))
    assert {*argument_names()} <= set(re.findall(r"`(\w+)`", table))


def test_every_recipe_is_in_the_guide() -> None:
    rows = cells(ROOT / "docs/guides/recipes.md")
    assert set(RECIPES) == {found for row in rows for found in re.findall(r"`(\w+)`", row[0])}


def test_every_benchmark_can_be_reproduced() -> None:
    told = (ROOT / "docs/benchmarks/reproduce.md").read_text()
    scripts = [script for script in (ROOT / "benchmarks").glob("*.py") if "__main__" in script.read_text()]
    assert not [script.name for script in scripts if f"benchmarks/{script.name}" not in told]


def test_every_environment_variable_is_explained() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "tools").glob("*.sh")]
    used = {found for source in sources for found in re.findall(r"[\"'${](QAIG_\w+)", source.read_text())}
    told = re.findall(r"`(QAIG_\w+)`", (ROOT / "docs/reference/environment.md").read_text())
    assert {variable for variable in used if "_KERNEL" not in variable} <= set(told)


def test_every_room_is_in_the_architecture() -> None:
    told = {found for row in cells(ROOT / "docs/concepts/architecture.md") for found in re.findall(r"`(\w+)`", row[0])}
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} <= told


def test_what_the_life_of_a_weight_calls_is_in_the_room_that_it_names() -> None:
    rows = [row for row in cells(ROOT / "docs/concepts/architecture.md") if len(row) == 4 and row[1].startswith("`")]
    wrong = []
    for _, room, calls, _ in rows:
        code = "\n".join(path.read_text() for path in (PACKAGE / room.strip("`")).rglob("*.py"))
        for call in re.findall(r"`(\w[\w.]*)`", calls):
            named = call.rpartition(".")[2]
            if not call.startswith("torch.") and not re.search(rf"(def|class) {named}\b", code):
                wrong.append(f"{room}: {call}")
    assert rows
    assert not wrong


def test_files_that_the_architecture_names_exist() -> None:
    page = (ROOT / "docs/concepts/architecture.md").read_text()
    named = re.findall(r"`([\w/]+/[\w.]+\.(?:py|cpp|h))`", page)
    assert named
    assert not [path for path in named if not (PACKAGE / path).exists() and not (ROOT / path).exists()]


def test_the_build_puts_the_list_of_files_in_the_place_of_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = types.ModuleType("latex2mathml.converter")
    converter.convert = str  # type: ignore[attr-defined]
    for path, module in (("latex2mathml", types.ModuleType("latex2mathml")), ("latex2mathml.converter", converter)):
        monkeypatch.setitem(sys.modules, path, module)
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = (ROOT / "docs/concepts/architecture.md").read_text()
    built = hooks.on_page_markdown(page)
    assert "run `make docs`" in page
    assert "run `make docs`" not in built
    assert "| `calibration/pipeline.py` | The calibration loop" in built
