"""How samples and rows are dealt out to processes; and one process, which talks to nobody."""

import pytest

from transformers_qaig.distributed import ALONE, Ranks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("count", [1, 7, 24])
def test_each_sample_has_one_owner_and_each_kind_is_shared_evenly(size: int, every: int, count: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    for kind in (range(0, count, every), [s for s in range(count) if s % every]):
        owned = [[s for s in kind if rank.owns(s, every)] for rank in ranks]
        assert sorted(sample for of_rank in owned for sample in of_rank) == list(kind)
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 17])
def test_rows_are_cut_without_gap_or_overlap(size: int, count: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    assert [row for rank in ranks for row in range(count)[rank.rows(count)]] == list(range(count))
    assert [ranks[0].rows(count, rank.rank) for rank in ranks] == [rank.rows(count) for rank in ranks]


def test_one_process_computes_in_order_and_raises_its_own_error() -> None:
    assert ALONE.is_main
    assert ALONE.gather("value") == ALONE.exchange(["value"]) == ["value"]
    assert ALONE.of_each([(0, 2), (1, 3)], lambda item: item * 10) == [20, 30]
    assert ALONE.on_main_for_long(lambda alive: alive() or "done") == "done"
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError) as raised:
        ALONE.together(lambda: (_ for _ in ()).throw(error))
    assert raised.value is error
