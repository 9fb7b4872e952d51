"""The token weights that only the accuracy benchmark has: their shares add up to what they are shares of."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_qaig import QAIGConfig
from transformers_qaig.config.recipes import RECIPES
from transformers_qaig.data.samples import answer_mask, load_samples, token_mask
from transformers_qaig.execution.routed_rows import RoutedRows
from transformers_qaig.structure import find_decoder_blocks, picture_tokens

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny-vlm"))
from accuracy_peers import routing_weights
from accuracy_peers.altered_weights import ALTERATIONS, altered, by_kind
from accuracy_peers.qaig import _known
from accuracy_peers.token_weights import Given, kl
from conversations import conversation

MODEL = Path(__file__).parents[2] / "examples" / "tiny-vlm" / "model"


@pytest.fixture(scope="module")
def arguments() -> list[Any]:
    """What calibration gives: the model, its blocks, samples, their masks and their answers."""
    model = AutoModelForImageTextToText.from_pretrained(MODEL).eval().requires_grad_(False)
    model.is_quantized = True  # as it is while it is being calibrated
    chats = [conversation(seed) for seed in (0, 1)]
    samples = load_samples(chats, AutoProcessor.from_pretrained(MODEL), num_samples=2, seed=0, with_labels=True)
    answers = [answer_mask(sample, picture_tokens(model)) for sample in samples]
    masks = [token_mask(sample) for sample in samples]
    samples = [{key: value for key, value in sample.items() if key != "labels"} for sample in samples]
    return [model, list(find_decoder_blocks(model).values()), samples, masks, answers]


@torch.no_grad()
def test_the_shares_of_all_groups_add_up_to_the_loss_with_all_linears_rounded(arguments: list[Any]) -> None:
    given = Given("path", 2, 64, *arguments)
    sums = [sum(float(rows[sample].sum()) for rows in given.shares.values()) for sample in (0, 1)]
    for linear in given.linears.values():
        linear.weight += given.errors[linear]
    losses = [float(kl(given.log_p[sample], given._answer(sample))) for sample in (0, 1)]
    assert min(losses) > 1e-4
    assert sums == pytest.approx(losses, rel=0.03)


@torch.no_grad()
def test_the_shares_of_a_blocks_tokens_add_up_to_the_loss_with_it_rounded(arguments: list[Any]) -> None:
    given = Given("downstream", 2, 64, *arguments)
    assert set(given.weights(0, [])) == {0, 1}
    for (block, _), linear in given.linears.items():
        if block == 0:
            linear.weight += given.errors[linear]
    losses = [float(kl(given.log_p[sample], given._answer(sample))) for sample in (0, 1)]
    assert [float(row.sum()) for row in given.shares[0]] == pytest.approx(losses, rel=0.15)


def test_shuffled_weights_are_the_same_ones_elsewhere(arguments: list[Any]) -> None:
    name = "self_attn.q_proj"
    own, shuffled = (Given(kind, 2, 64, *arguments).weights(2, [name])[0] for kind in ("path", "path-shuffled"))
    assert not torch.equal(own, shuffled)
    torch.testing.assert_close(own.sort().values, shuffled.sort().values)


def test_fishers_weights_are_nothing_where_no_answer_can_look(arguments: list[Any]) -> None:
    given = Given("fisher", 2, 64, *arguments)
    row, answers = given.shares[5, "mlp.down_proj"][0], arguments[4][0]
    read = torch.cat([answers[:, 1:], torch.zeros(1, 1, dtype=torch.bool)], 1)  # the next token is an answer's
    assert (row[read] > 0).all()
    assert (row[~read] == 0).all()


def test_a_variant_is_a_recipe_and_a_kind() -> None:
    before = dict(RECIPES)
    try:
        assert _known("default") == ("default", "")
        assert _known("default-shuffled") == ("default-shuffled", "")
        assert _known("default-path-shuffled") == ("default-path-shuffled", "path-shuffled")
        assert RECIPES["default-path-shuffled"].reads_answers
        assert RECIPES["default-shuffled"].token_weights == "shuffled"
        assert _known("default-qig-squared") == ("default-qig-squared", "qig-squared")
        assert RECIPES["default-qig-squared"].token_weights == "qig"
    finally:
        RECIPES.clear()
        RECIPES.update(before)


def test_kinds_of_tokens_are_made_alike_in_the_mean() -> None:
    weights, vision = torch.tensor([1.0, 3.0, 0.0, 0.5, 0.25]), torch.tensor([True, True, False, False, False])
    torch.testing.assert_close(by_kind(weights, vision), torch.tensor([0.5, 1.5, 0.0, 4 / 3, 2 / 3]))


def test_qigs_weights_are_altered_where_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made all alike, they pack what uniform ones pack, and as they are they do not."""

    def alike(weights: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        assert weights.shape == vision.shape
        assert int(vision.sum()) == 64
        return torch.ones_like(weights)

    def codes(token_weights: str) -> list[torch.Tensor]:
        data = [conversation(seed) for seed in (0, 1)]
        config = QAIGConfig(
            bits=2, group_size=64, recipe={"name": "gptq", "token_weights": token_weights}, dataset=data, num_samples=2
        )
        model = AutoModelForImageTextToText.from_pretrained(MODEL, quantization_config=config)
        return [value for name, value in model.state_dict().items() if name.endswith("weight_packed")]

    monkeypatch.setitem(ALTERATIONS, "qig-squared", alike)
    with altered("qig-squared"):
        made = codes("qig")
    assert made
    assert all(map(torch.equal, made, codes("uniform")))
    assert not all(map(torch.equal, made, codes("qig")))


def test_tokens_of_an_expert_count_by_another_function_of_their_routing_weight() -> None:
    index, weights = torch.tensor([[0, 1], [1, 0], [1, 2]]), torch.tensor([[0.5, 0.25], [0.5, 0.25], [1.0, 0.0]])
    rows = RoutedRows(torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([1.0, 1.0, 0.0]), index, weights)
    counts = {"": rows.of(1)[1].tolist()}
    for kind in routing_weights.KINDS:
        with routing_weights.weighed_by_routing(kind):
            tokens, counted = rows.of(1)
        assert tokens.tolist() == [0, 1]
        counts[kind.removeprefix("routing-")] = counted.tolist()
    linear, ones = [0.25, 0.5], [1.0, 1.0]
    assert counts == {"": linear, "linear": linear, "square": [0.0625, 0.25], "unweighted": ones, "all": ones}
