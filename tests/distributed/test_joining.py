"""How many processes a launcher started, and where each of them computes."""

import pytest
import torch
import torch.distributed as dist

from transformers_qaig.distributed import ALONE
from transformers_qaig.distributed.errors import RankLost
from transformers_qaig.distributed.joining import device_of, join, number_of_processes
from transformers_qaig.distributed.ranks import Ranks

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHED, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


def with_accelerators(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    found = torch.device("cuda") if count else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_without_a_launcher_there_is_one_process_that_joins_nobody() -> None:
    assert number_of_processes() == 1
    assert join() is ALONE


def test_a_launcher_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch)
    assert number_of_processes() == 3
    monkeypatch.delenv("MASTER_ADDR")  # a WORLD_SIZE that something else has set
    assert number_of_processes() == 1


def test_a_group_that_the_script_has_opened_counts_and_torch_without_groups_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch(monkeypatch)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    assert number_of_processes() == 5
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert number_of_processes() == 1


@pytest.mark.parametrize("error", [RuntimeError("timed out"), ValueError("no such host")])
def test_processes_that_do_not_come_are_told_of_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    launch(monkeypatch)
    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(RankLost, match=r"not all processes.*Call it in every process") as caught:
        join()
    assert caught.value.__cause__ is error


def test_a_rank_computes_on_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, 2)
    assert device_of(Ranks(3, 4), None) == torch.device("cuda", 1)  # ranks take turns without a local number
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert device_of(Ranks(3, 4), None) == torch.device("cuda", 0)


@pytest.mark.parametrize("ranks", [ALONE, Ranks(1, 2)])
def test_a_device_that_is_asked_for_is_taken_and_without_any_it_is_the_cpu(
    monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    with_accelerators(monkeypatch, 2)
    assert device_of(ranks, "cuda:1") == "cuda:1"
    with_accelerators(monkeypatch, 0)
    assert device_of(ranks, None) is None
    assert device_of(ranks, "cpu") == "cpu"


def test_one_process_takes_the_accelerator_that_torch_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, 2)
    assert device_of(ALONE, None) == torch.device("cuda")
