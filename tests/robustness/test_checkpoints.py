"""No damaged checkpoint hangs, crashes or answers nonsense silently, and errors of ours say what is wrong.

`QAIG_FUZZ_SEED=7` damages other things; `QAIG_FUZZ_COUNT` of them, `python -m pytest -s` shows the figures.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from tests.robustness.checkpoints import SETTINGS, Checkpoint, answer, make
from tests.robustness.children import run_all
from tests.robustness.config_damage import FOR_ONE_RUN, Damage
from tests.robustness.mutations import damage
from tests.robustness.outcomes import FAULTS, Outcome, sort

SEED = os.environ.get("QAIG_FUZZ_SEED", "0")
COUNT = int(os.environ.get("QAIG_FUZZ_COUNT", 420))


@pytest.mark.slow
def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    for name in SETTINGS:
        checkpoint = make(name, tmp_path / name)
        outcomes += _outcomes(name, checkpoint, tmp_path, -(-COUNT // len(SETTINGS)))
    counts = Counter(outcome.kind for outcome in outcomes)
    print(f"\nseed {SEED}: {len(outcomes)} damaged checkpoints: {dict(counts.most_common())}")
    faults = [f"{outcome.kind}: {outcome.text}" for outcome in outcomes if outcome.kind in FAULTS]
    assert not faults, f"{len(faults)} of {len(outcomes)}\n" + "\n".join(faults[:40])
    assert counts["same"] < len(outcomes) / 2  # damage that does none proves nothing


def _outcomes(name: str, checkpoint: Checkpoint, tmp_path: Path, count: int) -> Iterator[Outcome]:
    known = [*checkpoint.names, *FOR_ONE_RUN, *CONFIG_NAMES]
    damages: list[Damage] = []

    def functions() -> Iterator[Callable[[], object]]:
        for number in range(count):
            folder = tmp_path / f"{name}-{number}" / "packed"
            shutil.copytree(checkpoint.folder, folder)
            damages.append(damage(folder, Random(f"{SEED}-{name}-{number}")))
            yield lambda folder=folder: _compare(folder, checkpoint)

    for number, ended in enumerate(run_all(functions())):
        shutil.rmtree(tmp_path / f"{name}-{number}")
        outcome = sort(damages[number], ended, known)
        outcome.text = f"{name} {number}: {outcome.text}"
        yield outcome


CONFIG_NAMES = (
    "plan", "bits", "group_size", "sym", "recipe", "stages", "modules_to_not_convert", "overrides", "min_coverage",
    "num_samples", "seed", "target_size", "cost", "fuse_groups", "budget", "calibration", "format", "needs_version",
    "unknown argument",
    "quant_method", ".safetensors", "The shard", " is missing",
)  # fmt: skip


def _compare(folder: Path, checkpoint: Checkpoint) -> str:
    logits = answer(folder, checkpoint.inputs)
    if logits.shape == checkpoint.logits.shape and torch.equal(logits, checkpoint.logits):
        return "same"
    return "finite" if logits.isfinite().all() else "not finite"
