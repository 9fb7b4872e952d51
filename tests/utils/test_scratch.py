import os
from pathlib import Path

import pytest
import torch

from transformers_qaig.utils import scratch
from transformers_qaig.utils.scratch import LEAST, ScratchFiles

LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")


def is_in_a_file(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is that of a file which has no name any more."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return line.endswith("(deleted)")
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("changes", [False, True])
def test_equal_and_free_to_change(dtype: torch.dtype, changes: bool, tmp_path: Path) -> None:
    tensor = torch.randint(0, 2, (LEAST, 2)).to(dtype).t()
    kept = ScratchFiles(tmp_path).store(tensor, changes=changes)
    assert kept.dtype == dtype
    assert torch.equal(kept, tensor)
    before = tensor.clone()
    kept[0] = 1
    assert bool((kept[0] == 1).all())
    assert torch.equal(tensor, before)
    assert not list(tmp_path.iterdir())


@LINUX
def test_large_tensors_are_in_files_and_small_ones_stay(tmp_path: Path) -> None:
    files = ScratchFiles(tmp_path)
    large, small = torch.zeros(LEAST // 4), torch.zeros(LEAST // 4 - 1)
    assert is_in_a_file(files.store(large))
    assert files.store(small) is small


@LINUX
def test_a_change_goes_into_the_file_or_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def file_of(**how: object) -> object:
        opened.append(open(tmp_path / "named", "w+b"))  # noqa: SIM115 (closed by who asks for it)
        return opened[-1]

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", file_of)
    for changes, expected in ((True, 7.0), (False, 0.0)):
        kept = ScratchFiles(tmp_path).store(torch.zeros(LEAST), changes=changes)
        kept += 7
        stored = torch.frombuffer(bytearray((tmp_path / "named").read_bytes()), dtype=torch.float32)
        assert torch.equal(stored, torch.full((LEAST,), expected))


@LINUX
def test_tensors_in_files_hold_no_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = [ScratchFiles(tmp_path).store(torch.zeros(LEAST)) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before
    assert all(map(is_in_a_file, kept))


def test_without_a_folder_or_room_the_tensor_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(LEAST)
    assert ScratchFiles(tmp_path / "missing").store(tensor) is tensor
    monkeypatch.setattr(scratch, "RESERVE", 2**62)
    assert ScratchFiles(tmp_path).store(tensor) is tensor
