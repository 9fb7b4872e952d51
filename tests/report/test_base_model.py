"""What is read from the unquantized model's own card."""

from pathlib import Path

import pytest

from transformers_qaig.loading.source import Source
from transformers_qaig.report.base_model import BaseModel


def base_of(folder: Path, metadata: str) -> BaseModel:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# A model")
    return BaseModel.of(Source(str(folder)))


def cloned_from(folder: Path, url: str) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(f'[core]\n\tbare = false\n[remote "origin"]\n\turl = {url}\n\tfetch = +x\n')


def test_licence_and_languages_are_taken_over(tmp_path: Path) -> None:
    base = base_of(tmp_path, "license: other\nlicense_name: mine\nlanguage:\n- en\n- de\ntags: [x]\nbase_model: a/b")
    assert base == BaseModel(None, {"license": "other", "license_name": "mine", "language": ["en", "de"]})


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/org/vlm",
        "https://huggingface.co/org/vlm.git",
        "https://me:secret@huggingface.co/org/vlm/",
        "git@hf.co:org/vlm",
    ],
)
def test_a_clone_knows_its_origin(tmp_path: Path, url: str) -> None:
    cloned_from(tmp_path, url)
    assert BaseModel.of(Source(str(tmp_path))).repo_id == "org/vlm"


def test_a_folder_of_the_cache_knows_its_origin(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--tiny-vlm.2" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    assert BaseModel.of(Source(str(folder))).repo_id == "org/tiny-vlm.2"
    assert BaseModel.of(Source(str(folder.parent))).repo_id is None


def test_another_server_is_no_origin(tmp_path: Path) -> None:
    cloned_from(tmp_path, "https://example.org/org/vlm")
    assert BaseModel.of(Source(str(tmp_path))) == BaseModel()


def test_a_link_to_the_licence_leads_to_the_base(tmp_path: Path) -> None:
    assert base_of(tmp_path, "license_link: LICENSE").metadata == {}
    cloned_from(tmp_path, "https://huggingface.co/org/vlm")
    link = "https://huggingface.co/org/vlm/blob/main/LICENSE"
    assert base_of(tmp_path, "license_link: LICENSE").metadata == {"license_link": link}
    assert base_of(tmp_path, f"license_link: {link}").metadata == {"license_link": link}


@pytest.mark.parametrize(
    "metadata", ["license: 7", "license: {a: b}", f"license: {'x' * 1000}", "license: [", "- a", "license: []"]
)
def test_metadata_of_another_kind_are_passed_over(tmp_path: Path, metadata: str) -> None:
    assert base_of(tmp_path, metadata) == BaseModel()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"# no metadata", b"---\nlicense: mit\n---\n" + b"x" * (1 << 20)])
def test_a_card_without_metadata_or_too_large_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "README.md").write_bytes(content)
    assert BaseModel.of(Source(str(tmp_path))) == BaseModel()
