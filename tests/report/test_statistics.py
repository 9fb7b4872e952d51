"""Means, standard errors and paired ratios of figures per answer."""

import numpy as np
import pytest

from tests import seeds
from transformers_qaig.report.statistics import (
    AnswerStatistics,
    interval_note,
    paired_differences,
    paired_ratio,
    pooled,
)


def statistics(kl: np.ndarray | None, *, tokens: np.ndarray | None = None, per_picture: int = 1) -> AnswerStatistics:
    number = 0 if kl is None else len(kl)
    return AnswerStatistics(
        exact=np.arange(number) % 4 != 0,
        nll=np.ones(number),
        kl=kl,
        agreement=None if kl is None else np.ones(number),
        tokens=np.ones(number, dtype=np.int64) if tokens is None else tokens,
        task=np.array(["count", "read"] * (number // 2)),
        conversation=np.arange(number) // per_picture,
    )


def test_summary_weighs_answer_tokens_not_questions() -> None:
    summary = statistics(np.array([1.0, 4.0]), tokens=np.array([3, 1])).summary()
    assert summary["kl"]["mean"] == pytest.approx(7 / 4)
    assert summary["exact_match"]["mean"] == 0.5
    assert summary["answer_tokens"] == 4
    assert summary["tasks"]["read"]["kl"]["mean"] == 4.0
    assert summary["tasks"]["count"]["questions"] == 1


def test_standard_error_is_that_of_the_mean() -> None:
    values = seeds.rng().exponential(size=400)
    error = statistics(values).summary()["kl"]["standard_error"]
    assert error == pytest.approx(values.std() / 20, rel=0.1)


def test_questions_about_one_picture_count_as_one() -> None:
    """Four copies of each question bring no information: the standard error stays."""
    values = seeds.rng().exponential(size=100)
    once = statistics(values).summary()["kl"]["standard_error"]
    copied = statistics(values.repeat(4), per_picture=4).summary()["kl"]["standard_error"]
    assert copied == pytest.approx(once, rel=0.1)


def test_few_conversations_give_no_standard_error_and_no_interval() -> None:
    few, enough = (statistics(seeds.rng().exponential(size=n)) for n in (28, 60))
    summary = few.summary()
    assert summary["conversations"] == 28
    for name in ("exact_match", "nll", "perplexity", "kl", "agreement"):
        assert summary[name]["standard_error"] is None
        assert np.isfinite(summary[name]["mean"])
    assert paired_ratio(few, few) == (1.0, None, None)
    assert paired_differences(few, few) == {"exact_match": [0, None, None], "perplexity": [1, None, None]}
    assert interval_note(summary) == (
        "28 conversations are too few for a standard error or an interval: give at least 30."
    )
    assert enough.summary()["tasks"]["read"]["kl"]["standard_error"] > 0
    assert interval_note(enough.summary()) is None
    assert "A task of fewer than 30" in str(interval_note(statistics(np.ones(40)).summary()))


def test_paired_ratio_uses_the_pairing() -> None:
    """Per-question spread is common to both, so the ratio is known far better than either mean."""
    rng = seeds.rng()
    common = rng.lognormal(sigma=2.0, size=300)
    a = statistics(0.8 * common * rng.normal(1, 0.05, 300))
    b = statistics(common)
    ratio, lower, upper = paired_ratio(a, b)
    spread = 0.8 * 0.05 * np.linalg.norm(common) / common.sum()  # of that ratio; heavy tails make it a few per cent
    assert ratio == pytest.approx(0.8, abs=5 * spread)
    assert lower <= ratio <= upper
    assert upper - lower < 0.1
    assert paired_ratio(a, b, seed=7) == paired_ratio(a, b, seed=7)
    shuffled = AnswerStatistics(**{**vars(b), "kl": rng.permutation(b.kl)})
    _, lower, upper = paired_ratio(a, shuffled)
    assert upper - lower > 0.3


def test_paired_ratio_refuses_what_is_not_a_pair() -> None:
    a = statistics(np.ones(8))
    with pytest.raises(ValueError, match="same questions"):
        paired_ratio(a, statistics(np.ones(8), per_picture=2))
    with pytest.raises(ValueError, match="reference="):
        paired_ratio(a, AnswerStatistics(**{**vars(a), "kl": None}))


def test_perplexity_is_exp_of_the_mean_over_tokens() -> None:
    base = statistics(np.ones(200), tokens=np.arange(200) % 3 + 1)
    base = AnswerStatistics(**{**vars(base), "nll": seeds.rng().exponential(size=200)})
    summary = base.summary()
    by_hand = np.exp(sum(n * t for n, t in zip(base.nll, base.tokens)) / sum(base.tokens))
    assert summary["perplexity"]["mean"] == pytest.approx(by_hand)
    # The delta method: the error of exp(x) is exp(x) times that of x.
    expected = by_hand * summary["nll"]["standard_error"]
    assert summary["perplexity"]["standard_error"] == pytest.approx(expected, rel=0.05)


def test_pooled_is_the_mean_per_question() -> None:
    a, b = statistics(np.array([1.0, 4.0])), statistics(np.array([3.0, 0.0]))
    both = pooled([a, b])
    np.testing.assert_array_equal(both.kl, [2.0, 2.0])
    np.testing.assert_array_equal(both.exact, a.exact)
    assert pooled([a, AnswerStatistics(**{**vars(b), "kl": None})]).kl is None
    with pytest.raises(ValueError, match="same questions"):
        pooled([a, statistics(np.ones(2), tokens=np.array([1, 2]))])
    with pytest.raises(ValueError, match="at least one"):
        pooled([])
