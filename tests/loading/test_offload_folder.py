"""Folders of offloaded tensors: those of killed runs are removed, those of living ones and of parents are not."""

import os
import signal
from pathlib import Path

from transformers_qaig.loading.offload_folder import OffloadFolder


def run_of_another_process(parent: Path) -> tuple[int, Path]:
    """The id of a process that holds a folder below `parent` until it is killed, and the folder."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        folder = OffloadFolder(parent)
        (folder.path / "weight.dat").write_bytes(b"x")
        os.write(writer, str(folder.path).encode())
        signal.pause()
    path = Path(os.read(reader, 1000).decode())
    os.close(reader)
    os.close(writer)
    return process, path


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_what_a_killed_run_left_is_removed_and_a_living_one_is_not_touched(tmp_path: Path) -> None:
    killed, left = run_of_another_process(tmp_path)
    kill(killed)
    (tmp_path / "mine").mkdir()
    assert left.exists()
    living, used = run_of_another_process(tmp_path)
    own = OffloadFolder(tmp_path)
    there = {path for path in tmp_path.iterdir() if path.is_dir()}
    kill(living)
    assert there == {own.path, used, tmp_path / "mine"}
    assert not Path(f"{left}.lock").exists()


def test_a_fork_does_not_remove_its_parents_folder(tmp_path: Path) -> None:
    folder = OffloadFolder(tmp_path)
    process = os.fork()
    if process == 0:
        folder.remove()
        os._exit(0)
    os.waitpid(process, 0)
    assert folder.path.exists()
