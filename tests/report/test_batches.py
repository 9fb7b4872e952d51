"""Batches of questions, and logits that are kept partly in a file."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.report import batches
from transformers_qaig.report.batches import LARGEST_BATCH, SHARE, KeptLogits, batches_of, forward
from transformers_qaig.report.questions import Question

VOCABULARY = 11


def question(length: int, start: int, first: int = 0) -> Question:
    ids = (torch.arange(length) + first).remainder(VOCABULARY)
    return Question({"input_ids": ids[None]}, start, length, "", 0)


class Model(nn.Module):
    """Its logits are one at the token that it reads. It runs out of memory above `room` questions."""

    def __init__(self, room: int = LARGEST_BATCH):
        super().__init__()
        self.weight, self.room, self.sizes = nn.Parameter(torch.zeros(())), room, []
        self.config = SimpleNamespace(hidden_size=64, vocab_size=VOCABULARY)

    def forward(self, input_ids: Tensor, use_cache: bool = True) -> SimpleNamespace:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.room:
            raise torch.OutOfMemoryError("too many")
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids, VOCABULARY).float())


class LastOnly(Model):
    """Computes logits at the last positions only."""

    def forward(self, input_ids: Tensor, use_cache: bool = True, logits_to_keep: int = 0) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(input_ids).logits[:, -logits_to_keep:])


def test_only_questions_of_equal_shapes_share_a_batch() -> None:
    questions = [question(5, 2), question(7, 2), question(5, 3), question(5, 2), question(7, 6)]
    assert batches_of(None, questions, None) == [[0, 2, 3], [1, 4]]
    assert batches_of(None, questions, 2) == [[0, 2], [3], [1, 4]]


@pytest.mark.parametrize(
    ("each", "size"), [(2.5, 2), (0.5, 1), (1e9, LARGEST_BATCH)], ids=["some fit", "none fits", "all fit"]
)
def test_a_batch_takes_its_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, each: float, size: int) -> None:
    one = 5 * 64 * batches.PER_CHANNEL + 5 * VOCABULARY * batches.PER_LOGIT
    monkeypatch.setattr(batches, "free_memory", lambda device: int(each * one) * SHARE)
    questions = [question(5, 2) for _ in range(LARGEST_BATCH + 1)]
    assert len(batches_of(Model(), questions, None)[0]) == size


@pytest.mark.parametrize("kind", [Model, LastOnly])
def test_logits_are_those_at_the_positions_that_predict_the_answer(kind: type[Model]) -> None:
    asked = [question(6, 4, first=1), question(6, 2, first=3)]
    found = forward(kind(), asked)
    assert [logits.argmax(-1).tolist() for logits in found] == [[4, 5], [4, 5, 6, 7]]


def test_a_batch_too_large_for_memory_runs_in_halves_and_one_question_raises() -> None:
    model = Model(room=2)
    found = forward(model, [question(4, 3, first=first) for first in range(5)])
    assert [int(logits.argmax()) for logits in found] == [2, 3, 4, 5, 6]
    assert model.sizes == [5, 2, 3, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        forward(Model(room=0), [question(4, 3)])


def test_logits_beyond_the_limit_come_back_from_a_file_as_they_were(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = []
    monkeypatch.setattr(batches, "temporary_folder", lambda: folders.append(1) or str(tmp_path))
    logits = [torch.randn(3, 4), torch.randn(2, 4).bfloat16(), torch.randn(4, 2).T, torch.randn(1, 4)]
    kept = KeptLogits(4, limit=64)
    for index in (2, 1, 0, 3):
        kept[index] = logits[index]
    assert len(folders) == 1
    assert len(kept) == 4
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(kept, logits))
    assert [tuple(one.shape) for one in kept[1:3]] == [(2, 4), (2, 4)]


def test_logits_in_memory_do_not_hold_the_whole_batch() -> None:
    batch = torch.randn(8, 2, 4)
    kept = KeptLogits(1)
    kept[0] = batch[0]
    assert kept[0].untyped_storage().nbytes() == batch[0].nbytes
