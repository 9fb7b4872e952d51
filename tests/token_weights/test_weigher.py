"""λ and E of `paper`, `authors` and their kin against a slow reimplementation by autograd, padding and GQA included."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import seeds
from tests.families import build, samples
from transformers_qaig.attribution.gradients import token_gradients
from transformers_qaig.attribution.qig import token_importance
from transformers_qaig.calibration.decisions import BlockDecisions
from transformers_qaig.calibration.exclusions import Exclusions, numbered
from transformers_qaig.calibration.group_inputs import GroupInputs, gather_group_inputs
from transformers_qaig.calibration.steps import GroupContext, equalize
from transformers_qaig.equalization.probe import Group, find_groups
from transformers_qaig.execution.interceptor import LayerInputs, TargetInputs
from transformers_qaig.recipes import recipe_of
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.token_weights.weigher import UNIFORM_CALLS, TokenWeigher, precomputed_weights

BITS, GROUP = 3, 32
MODULES = ["self_attn", "mlp", "mlp.down_proj"]


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, dict[str, Group], dict[str, list[GroupInputs]]]:
    """A block with grouped-query attention, its groups, and pieces with padding at their ends, by f_s."""
    model, processor = build("llava")
    block = next(iter(find_decoder_blocks(model).values())).requires_grad_(False)
    calls: list[LayerInputs] = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(LayerInputs(args, kwargs)), with_kwargs=True
    )
    data = samples(processor, 4)
    masks = []
    with torch.no_grad():
        for index, sample in enumerate(data):
            model(**sample, use_cache=False)
            mask = torch.ones_like(sample["attention_mask"], dtype=torch.bool)
            mask[0, mask.shape[1] - index :] = False
            masks.append(mask)
    handle.remove()
    groups = {group.module: group for group in find_groups(block, calls[0].args, calls[0].kwargs)}
    by_index, generator = dict(enumerate(calls)), seeds.generator(3)
    pieces, streams = {}, TargetInputs(by_index, by_index, masks)
    for module in MODULES:
        pieces[module] = gather_group_inputs(block, groups[module], (block, block), streams, range(len(data)))
        for piece in pieces[module]:
            piece.x_q = piece.x + 0.1 * piece.x.std() * torch.randn(piece.x.shape, generator=generator)
    return block, groups, pieces


def _site(case, module: str, recipe: str, activation_bits: int = 16, **stages) -> tuple[GroupContext, BlockDecisions]:
    block, groups, pieces = case
    per_channel = activation_bits == 8
    entry = {"bits": 4 if per_channel else BITS, "group_size": -1 if per_channel else GROUP, "sym": per_channel}
    entries = {name: entry for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    group = groups[module]
    chosen = recipe_of(recipe, stages)
    own = [replace(piece) for piece in pieces[module]]
    site = GroupContext(block, group, list(group.linears), own, chosen, torch.float32, True, int(entry["bits"]))
    return site, BlockDecisions(entries, activation_bits=activation_bits)


def _round(weight: Tensor, activation_bits: int) -> Tensor:
    if activation_bits == 8:  # W4 per output channel, symmetric
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-5) / 7
        return (weight / scale).round().clamp(-8, 7) * scale
    t = weight.reshape(-1, GROUP)
    low, high = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / (2**BITS - 1)
    zero = (-torch.round(low / scale)).clamp(0, 2**BITS - 1)
    return (((torch.round(t / scale) + zero).clamp(0, 2**BITS - 1) - zero) * scale).reshape(weight.shape)


def _round_tokens(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (x / scale).round().clamp(-128, 127) * scale


class _Rounding(nn.Module):
    """A linear that rounds its input per token, straight through."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + (_round_tokens(x) - x).detach())


def _rounded(module: nn.Module, activation_bits: int) -> nn.Module:
    module = copy.deepcopy(module)
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear):
            linear.weight.data = _round(linear.weight.data, activation_bits)
            if activation_bits == 8 and name:
                module.set_submodule(name, _Rounding(linear))
    return _Rounding(module) if activation_bits == 8 and isinstance(module, nn.Linear) else module


def _run(module: nn.Module, piece: GroupInputs, x: Tensor) -> Tensor:
    if len(piece.samples) > 1:
        return module(x)
    output = module(**{**piece.kwargs, "hidden_states": x}) if piece.kwargs else module(x)
    return output[0] if isinstance(output, tuple) else output


def _slow_scores(case, module: str, piece: GroupInputs, activation_bits: int, authors: bool, nodes: int) -> Tensor:
    """mean_c |QIG| of every token, by autograd."""
    f = case[0].get_submodule(module)
    f_q = _rounded(f, activation_bits)
    x = piece.x
    x0 = piece.x_q
    if activation_bits == 8 and not authors:
        x0 = _round_tokens(x0)
    if activation_bits == 16 and authors:
        x0 = torch.zeros_like(x)
    shares = torch.linspace(0, 1, 32) if authors else (torch.arange(nodes) + 0.5) / nodes
    total = torch.zeros_like(x)
    for share in shares:
        point = (x0 + share * (x - x0)).requires_grad_()
        other = _run(f_q, piece, point)
        if activation_bits == 8 and authors:
            other = other.detach()
        (1000 * (_run(f, piece, point) - other)).abs().mean(-1).sum().backward()
        total += point.grad
    return ((x - x0) * total / len(shares)).abs().mean(-1)


def _clipped(r: Tensor) -> Tensor:
    q1, q3 = torch.quantile(r, 0.25), torch.quantile(r, 0.75)
    return r.clamp(q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1))


def _slow_weights(
    case, module: str, piece: GroupInputs, activation_bits: int, authors: bool, nodes: int
) -> list[Tensor]:
    """λ of each sequence."""
    scores = _slow_scores(case, module, piece, activation_bits, authors, nodes).reshape(-1).split(piece.lengths)
    weights = []
    for r, real in zip(scores, piece.real.reshape(-1).split(piece.lengths)):
        if authors:  # padding counts, the sum is 1, weights and activations: no clip
            r = r / r.sum()
            r = _clipped(r) if activation_bits == 16 else r
            weights.append(r / r.sum())
        else:
            weight = torch.zeros_like(r)
            clipped = _clipped(r[real])
            weight[real] = clipped / clipped.sum() * real.sum()
            weights.append(weight)
    return weights


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("recipe", ["paper", "authors"])
def test_token_weights_equal_a_slow_reimplementation(case, module: str, activation_bits: int, recipe: str) -> None:
    nodes = 256 if module == "mlp.down_proj" else 8
    site, choices = _site(case, module, recipe, activation_bits)
    weigher = TokenWeigher(site.recipe)
    weigher.calls = UNIFORM_CALLS
    weigher.weigh(site, choices)
    # The closed form has no nodes; the reimplementation then takes many.
    tolerance = 2e-2 if nodes == 256 and recipe == "paper" and activation_bits == 16 else 1e-3
    for piece in site.pieces:
        ours = piece.weights.reshape(-1).split(piece.lengths)
        for weight, slow in zip(ours, _slow_weights(case, module, piece, activation_bits, recipe == "authors", nodes)):
            if nodes == 256 and tolerance == 1e-3 and recipe == "paper":
                continue  # eight nodes against 256 is no comparison: the other sub-blocks check this rule
            torch.testing.assert_close(weight, slow, rtol=tolerance, atol=tolerance * float(slow.mean()))
            assert slow.std() / slow.mean() > 0.05  # not just uniform


@pytest.mark.parametrize("module", ["self_attn", "mlp.down_proj"])
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("recipe", ["paper", "authors"])
def test_scales_equal_a_slow_search(case, module: str, activation_bits: int, recipe: str) -> None:
    site, choices = _site(case, module, recipe, activation_bits)
    weigher = TokenWeigher(site.recipe)
    weigher.calls = UNIFORM_CALLS
    weigher.weigh(site, choices)
    found = equalize(site, choices)
    inputs = [piece.x_q if activation_bits == 8 else piece.x for piece in site.pieces]
    rows = [x if recipe == "authors" else x[piece.real] for x, piece in zip(inputs, site.pieces)]
    a = torch.cat([x.reshape(-1, x.shape[-1]) for x in rows]).abs().mean(0)
    f = site.block.get_submodule(module)
    best, best_loss = torch.ones_like(a), float("inf")
    for point in range(20):
        scale = a.pow(point / 20).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        g = copy.deepcopy(f)
        for name in site.group.linears:
            path = name.removeprefix(module).removeprefix(".")
            linear = g.get_submodule(path)
            linear.weight.data = _round(linear.weight.data * scale, activation_bits)
            if activation_bits == 16:
                linear.weight.data /= scale
            elif path:
                g.set_submodule(path, _Rounding(linear))
            else:
                g = _Rounding(linear)
        total, mass = 0.0, 0.0
        for x, piece in zip(inputs, site.pieces):
            y = _run(g, piece, x / scale if activation_bits == 8 else x)
            total += float(((y - _run(f, piece, x)).abs().mean(-1) * piece.weights).sum())
            mass += float(piece.weights.sum())
        if total / mass < best_loss:
            best, best_loss = scale, total / mass
    ours = found.scales[0][1] if found.scales else torch.ones_like(a)
    torch.testing.assert_close(ours, best, rtol=1e-4, atol=1e-5)


def test_the_authors_first_searches_are_uniform_over_pictures_and_answers(case) -> None:
    recipe = recipe_of("authors")
    vision = {
        s: torch.arange(n)[None] < 3 for piece in case[2]["self_attn"] for s, n in zip(piece.samples, piece.lengths)
    }
    weigher = TokenWeigher(recipe, given=[{s: mask.float() for s, mask in vision.items()}])
    kinds = []
    for _ in range(UNIFORM_CALLS + 1):
        site, choices = _site(case, "mlp", "authors")
        weigher.weigh(site, choices)
        kinds.append({float(w) for piece in site.pieces for w in piece.weights.flatten()} == {0.0, 1.0})
    assert kinds == [True] * UNIFORM_CALLS + [False]
    # Rounded inputs are weighed from the first search on.
    site, choices = _site(case, "mlp", "authors", 8)
    TokenWeigher(recipe).weigh(site, choices)
    assert any(len(piece.weights.unique()) > 2 for piece in site.pieces)


def test_where_the_streams_agree_the_authors_with_rounded_inputs_scale_nothing(case) -> None:
    site, choices = _site(case, "mlp", "authors", 8)
    for piece in site.pieces:
        piece.x_q = piece.x
    TokenWeigher(site.recipe).weigh(site, choices)
    assert all((piece.weights == 0).all() for piece in site.pieces)
    assert equalize(site, choices) is choices


def test_a_picture_weighs_as_much_as_the_text_when_balanced() -> None:
    real = torch.tensor([[True] * 10 + [False] * 2])
    vision = torch.arange(12)[None] < 8
    given = precomputed_weights(
        nn.Linear(1, 1),
        [nn.Identity()],
        numbered([{}]),
        [real],
        [real],
        [vision],
        recipe_of("fast", {"token_weights": "balanced"}),
        None,
        Exclusions(1),
    )
    (weights,) = given[0].values()
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
    given = precomputed_weights(model, blocks, numbered(data), masks, answers, vision, recipe, None, Exclusions(2))
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
        torch.testing.assert_close(given[1][0], token_importance(gradients[1].unsqueeze(-1), masks[0]))
    else:
        for weights, v, a in zip(given[0].values(), vision, answers):
            assert (weights[a] == 1).all()
            assert len(weights[v].unique()) == 1
            assert (weights[~(v | a)] == 0).all()
        assert float(given[0][0][vision[0]][0]) == float(given[0][1][vision[1]][0])
