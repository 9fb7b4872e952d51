"""One process saves, the others wait for it: in one process here, with a store that all of them share."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from transformers_qaig.distributed import Ranks, one_writer
from transformers_qaig.distributed.one_writer import OneWriter


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store of a process group; nobody waits long at it."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(one_writer, "TIMEOUT", timedelta(milliseconds=20))
    return store


def main_and_other(run: int = 1) -> tuple[OneWriter, OneWriter]:
    return OneWriter(0, 2, run), OneWriter(1, 2, run)


def must_not_save() -> None:
    raise AssertionError("this process saves")


def test_a_writer_is_of_the_ranks_that_made_the_model() -> None:
    writer = OneWriter.of(Ranks(rank=2, size=3, run=5))
    assert (writer.rank, writer.size, writer.run) == (2, 3, 5)
    assert [OneWriter(rank, size).is_other for rank, size in ((0, 1), (0, 2), (1, 2))] == [False, False, True]


def test_one_process_saves_without_a_group(tmp_path: Path) -> None:
    saved: list[int] = []
    OneWriter.of().write(tmp_path, lambda: saved.append(1))
    OneWriter.of().write(tmp_path, lambda: saved.append(2), is_main_process=False)
    assert saved == [1, 2]


def test_the_writer_of_a_model_that_one_process_made_tells_nobody(store: dist.Store) -> None:
    saved: list[int] = []
    OneWriter.of().write("folder", lambda: saved.append(1))
    assert saved == [1]
    assert store.num_keys() == 0


@pytest.mark.parametrize("as_path", [Path, str])
def test_the_others_wait_for_the_save_and_do_not_save(store: dist.Store, as_path: Callable[[str], Path | str]) -> None:
    main, other = main_and_other()
    saved: list[str] = []
    main.write("folder", lambda: saved.append("main"))
    other.write(as_path("folder"), must_not_save)
    assert saved == ["main"]


def test_a_process_that_the_script_leaves_out_saves_as_it_is_told(store: dist.Store) -> None:
    """Transformers writes nothing there itself, and nobody is waited for."""
    saved: list[int] = []
    main_and_other()[1].write("folder", lambda: saved.append(1), is_main_process=False)
    assert saved == [1]


def test_the_nth_save_to_a_folder_waits_for_the_nth(store: dist.Store) -> None:
    main, other = main_and_other()
    main.write("one", lambda: None)
    other.write("one", must_not_save)
    with pytest.raises(RuntimeError, match="did not save the model to one"):
        other.write("one", must_not_save)
    main.write("one", lambda: None)
    main.write("one", lambda: None)
    other.write("one", must_not_save)  # its third
    with pytest.raises(RuntimeError, match=r"did not save the model to two.*give every process the same folder"):
        other.write("two", must_not_save)


def test_saves_of_another_run_do_not_count(store: dist.Store) -> None:
    main_and_other(run=1)[0].write("folder", lambda: None)
    with pytest.raises(RuntimeError, match="did not save"):
        main_and_other(run=2)[1].write("folder", must_not_save)


def test_an_error_of_the_main_process_is_raised_in_all(store: dist.Store) -> None:
    main, other = main_and_other()

    def fail() -> None:
        raise OSError("No space left on device" + "!" * 10_000)

    with pytest.raises(OSError, match="No space left on device"):
        main.write("folder", fail)
    with pytest.raises(RuntimeError, match="could not save the model: OSError: No space left on device!") as raised:
        other.write("folder", must_not_save)
    assert len(str(raised.value)) < 2_100


def test_an_interrupt_of_the_main_process_ends_the_waiting(store: dist.Store) -> None:
    main, other = main_and_other()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main.write("folder", interrupt)
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        other.write("folder", must_not_save)


def test_without_a_group_only_the_main_process_saves_and_the_others_say_why(caplog: pytest.LogCaptureFixture) -> None:
    main, other = main_and_other()
    saved: list[str] = []
    main.write("folder", lambda: saved.append("main"))
    assert caplog.text == ""
    other.write("folder", must_not_save)
    assert "saves folder, and this one does not wait" in caplog.text
    assert "Save before `destroy_process_group`" in caplog.text
    other.write("folder", lambda: saved.append("left out"), is_main_process=False)
    assert saved == ["main", "left out"]
