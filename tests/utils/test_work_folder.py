"""What is taken from a work folder, and what is done again."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.lifecycle import run
from transformers_qaig.utils import work_folder as work_folder_room
from transformers_qaig.utils.errors import SettingError
from transformers_qaig.utils.work_folder import RUN, WorkFolder, work_folder

TENSORS = {"weight": torch.arange(6, dtype=torch.int32).view(2, 3), "bias": torch.tensor(1.5, dtype=torch.bfloat16)}
RUN_A, RUN_B = {"recipe": "rtn", "seed": 0}, {"recipe": "gptq", "seed": 0}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with work_folder(tmp_path, RUN_A) as store:
        store.save("layers.0", TENSORS, {"error": "0.5"})
        store.save("layers.1", {}, {"error": "0.25"})
    return tmp_path / "layers.0.safetensors"


def load(saved: Path, run: dict = RUN_A, name: str = "layers.0"):
    with work_folder(saved.parent, run) as store:
        return store.load(name)


def test_what_was_saved_is_loaded(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors, facts = load(saved)
    assert facts == {"error": "0.5"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert load(saved, name="layers.1") == ({}, {"error": "0.25"})
    assert load(saved, name="layers.2") is None
    assert caplog.text == ""


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def without_metadata(raw: bytes) -> bytes:
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw + b"\0",
        lambda raw: bytes(len(raw)),
        lambda raw: flipped(raw, len(raw) - 1),
        lambda raw: raw.replace(b"0.5", b"0.4"),
        without_metadata,
    ],
)
def test_a_damaged_file_is_named_and_not_taken(saved: Path, caplog: pytest.LogCaptureFixture, damage) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    assert load(saved) is None
    assert caplog.text.count("WARNING") == 1
    assert str(saved) in caplog.text


def test_a_flipped_bit_in_any_byte_is_found(saved: Path) -> None:
    raw = saved.read_bytes()
    for at in range(len(raw)):
        saved.write_bytes(flipped(raw, at))
        assert load(saved) is None, at


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to nothing", "link to a device"])
def test_what_is_no_file_is_named_and_not_taken(saved: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    saved.unlink()
    if kind == "folder":
        saved.mkdir()
    elif kind == "fifo":
        os.mkfifo(saved)
    else:
        saved.symlink_to("/dev/zero" if kind == "link to a device" else "nowhere")
    assert load(saved) is None
    assert str(saved) in caplog.text


def test_what_a_reader_cannot_use_is_named_and_not_taken(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with work_folder(saved.parent, RUN_A) as store:
        assert store is not None
        assert store.load_as("layers.0", lambda tensors, facts: float(facts["error"])) == 0.5
        assert store.load_as("layers.2", lambda tensors, facts: 1) is None
        assert caplog.text == ""
        assert store.load_as("layers.0", lambda tensors, facts: facts["costs"]) is None
    assert f"{saved} does not hold what it stands for, which is done again: KeyError: 'costs'" in caplog.text


def test_a_file_under_another_name_is_not_taken(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved.rename(saved.with_name("layers.1.safetensors"))
    assert load(saved, name="layers.1") is None
    assert "layers.1.safetensors" in caplog.text


@pytest.mark.parametrize("text", [None, "", "null", "[]", '{"recipe": "r', "\0\0", b"\xff"])
def test_a_lost_or_damaged_description_of_the_run_is_no_licence(
    saved: Path, caplog: pytest.LogCaptureFixture, text: str | bytes | None
) -> None:
    """The run's own files are taken all the same: each says whose it is."""
    description = saved.with_name(RUN)
    for other, taken in ((RUN_A, True), (RUN_B, False)):
        caplog.clear()
        description.unlink()
        if text is not None:
            description.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert (load(saved, other) is not None) == taken
        assert str(description) in caplog.text
        assert (str(saved) in caplog.text) == (not taken)
        assert json.loads(description.read_text())["recipe"] == other["recipe"]


def test_another_run_is_refused_with_what_differs(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"work_dir.*another run \(different recipe\)"):
        load(saved, RUN_B)
    assert load(saved) is not None


def test_a_folder_in_use_is_refused(saved: Path) -> None:
    """By another thread or process, whatever its run."""
    with work_folder(saved.parent, RUN_A):
        code = (
            "from pathlib import Path; from transformers_qaig.utils.work_folder import WorkFolder\n"
            f"WorkFolder(Path({str(saved.parent)!r}), {RUN_A!r})"
        )
        done = run(code)
    assert done.returncode == 1
    assert "is in use by another run" in done.stderr.splitlines()[-1]
    assert load(saved) is not None


def test_a_file_that_names_no_run_is_not_taken(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = {"error": "0.5"}
    checksum = work_folder_room._checksum("layers.0", TENSORS, facts)
    save_file(TENSORS, saved, {**facts, work_folder_room._CHECKSUM_KEY: checksum})
    assert load(saved) is None
    assert f"{saved} belongs to another run" in caplog.text


def test_a_lock_that_is_a_folder_is_named(saved: Path) -> None:
    saved.with_name("lock").unlink(missing_ok=True)
    saved.with_name("lock").mkdir()
    with pytest.raises(ValueError, match=r"`work_dir`: .*lock cannot be locked .*directory"):
        load(saved)


def test_an_error_frees_the_folder(saved: Path) -> None:
    with pytest.raises(ValueError, match="another run"):
        WorkFolder(saved.parent, RUN_B)
    with pytest.raises(KeyboardInterrupt), work_folder(saved.parent, RUN_A):
        raise KeyboardInterrupt
    assert load(saved) is not None


def test_what_killed_runs_left_is_removed(saved: Path) -> None:
    left = saved.with_name(f".unfinished-0123-{saved.name}")
    left.write_bytes(saved.read_bytes()[:99])
    assert load(saved) is not None
    assert not left.exists()


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"`work_dir`: nothing can be written to .*/file \(File exists\)"):
        WorkFolder(tmp_path / "file", {})


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(saved: Path) -> None:
    with work_folder(saved.parent, RUN_A) as store:
        saved.with_name("layers.2.safetensors").mkdir()
        with pytest.raises(OSError, match=r"`work_dir`: .*layers\.2\.safetensors cannot be written"):
            store.save("layers.2", TENSORS, {})
    assert not list(saved.parent.glob(".unfinished*"))
