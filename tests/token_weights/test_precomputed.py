"""Token weights that are computed before calibration: balanced, and by gradients."""

import pytest
import torch
from torch import Tensor, nn

from tests.families import build, samples
from transformers_qaig.config.recipes import recipe_of
from transformers_qaig.data.calibration_data import CalibrationData
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.token_weights.data import WeightingData
from transformers_qaig.token_weights.integrated_gradients import weights_from_attribution
from transformers_qaig.token_weights.precomputed import text_alone
from transformers_qaig.token_weights.registry import precompute
from transformers_qaig.token_weights.token_gradients import token_gradients


def test_a_picture_weighs_as_much_as_the_text_when_balanced() -> None:
    real = torch.tensor([[True] * 10 + [False] * 2])
    vision = torch.arange(12)[None] < 8
    recipe, block = recipe_of("fast", {"token_weights": "balanced"}), nn.Identity()
    data = WeightingData(nn.Linear(1, 1), [block], CalibrationData.of([{}], [real]), [real], [vision], device=None)
    (weights,) = precompute(recipe, data)[block].values()
    torch.testing.assert_close(weights[vision].sum(), weights[~vision].sum())
    assert (weights[~real] == 0).all()
    assert float(weights.sum()) == pytest.approx(10)


@pytest.mark.parametrize("kind", ["mbq", "gradient"])
def test_weights_by_gradients_equal_finite_differences(kind: str) -> None:
    model, processor = build("llava")
    model.requires_grad_(False).eval()
    blocks = list(find_decoder_blocks(model).values())
    data = samples(processor, 2)
    masks = [sample["attention_mask"].bool() for sample in data]
    vision = [sample["input_ids"] == model.config.image_token_id for sample in data]
    answers = [(torch.arange(mask.shape[1]) >= mask.shape[1] - 4)[None] & ~v for mask, v in zip(masks, vision)]
    recipe = recipe_of("mbq", {"token_weights": kind})
    calibration = CalibrationData.of(data, answers)
    given = precompute(recipe, WeightingData(model, blocks, calibration, masks, vision, device=None))
    assert given is not None

    def loss(sample: dict, answer: Tensor, block: int, token: int, channel: int, step: float) -> float:
        def push(module, args, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[0, token, channel] += step
            return (states, *output[1:]) if isinstance(output, tuple) else states

        handle = blocks[block].register_forward_hook(push)
        with torch.no_grad():
            log_p = model(**sample, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        handle.remove()
        picked = log_p.gather(1, sample["input_ids"][0, 1:, None])[:, 0]
        return -float(picked[answer[0, 1:]].sum())

    def slope(s: int, block: int, token: int) -> float:
        """Mean over some channels of |∂L/∂h|."""
        pairs = [[loss(data[s], answers[s], block, token, c, e) for e in (1e-2, -1e-2)] for c in range(64)]
        return sum(abs(up - down) for up, down in pairs) / 2e-2 / 64

    gradients = token_gradients(model, blocks, data[0], answers[0])
    tokens = [int(vision[0][0].nonzero()[0]), int(answers[0][0].nonzero()[1])]
    for block in range(2):
        slow = torch.tensor([slope(0, block, token) for token in tokens])
        torch.testing.assert_close(gradients[block][0, tokens], slow, rtol=0.02, atol=1e-6)
    if kind == "gradient":
        torch.testing.assert_close(given[blocks[1]][0], weights_from_attribution(gradients[1].unsqueeze(-1), masks[0]))
    else:
        for weights, v, a in zip(given[blocks[0]].values(), vision, answers):
            assert (weights[a] == 1).all()
            assert len(weights[v].unique()) == 1
            assert (weights[~(v | a)] == 0).all()
        assert float(given[blocks[0]][0][vision[0]][0]) == float(given[blocks[0]][1][vision[1]][0])


def test_pictures_and_padding_do_not_choose_a_damping() -> None:
    masks = [torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False, False]])]
    pictures = [torch.tensor([[True, False, False, True]]), torch.tensor([[True, True, True, False]])]
    blocks = [nn.Identity(), nn.Identity()]
    data = WeightingData(nn.Identity(), blocks, CalibrationData.of([], []), masks, pictures, None)
    found = text_alone(data)
    assert set(found) == set(blocks)
    for block in blocks:
        assert found[block][0].tolist() == [[0.0, 1.0, 1.0, 0.0]]
        assert set(found[block]) == {0}  # the other has no text: all its real tokens count
