"""Free memory is what a container's limit leaves, where it is less than the machine's."""

from pathlib import Path

import psutil
import pytest
import torch

from transformers_qaig.utils import memory

CPU = torch.device("cpu")
V1, V2 = "9:memory:/a/b\n3:cpu:/\n", "0::/a/b\n"


def files(root: Path, groups: str, files: dict[str, str]) -> None:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "folder", "names"),
    [
        (V2, "sys/fs/cgroup/a", ("memory.max", "memory.current", "inactive_file")),
        (V2, "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (V1, "sys/fs/cgroup/memory/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
        (V1, "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_a_limit_counts(
    groups: str, folder: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used, cached = names
    values = {limit: "1000", used: "700", "memory.stat": f"anon 5\n{cached} 100\n"}
    files(tmp_path, groups, {f"{folder}/{name}": value for name, value in values.items()})
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free_memory(CPU) == 400


@pytest.mark.parametrize("groups", ["", V2])
def test_without_a_limit_the_machine_counts(groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if groups:
        files(tmp_path, groups, {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "7\n"})
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free_memory(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
