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
from transformers_qaig.calibration.steps import GroupContext, equalize
from transformers_qaig.equalization.probe import Group, find_groups
from transformers_qaig.execution.exclusions import Exclusions, numbered
from transformers_qaig.execution.gathering import gather_group_inputs
from transformers_qaig.execution.group_inputs import GroupInputs
from transformers_qaig.execution.interceptor import LayerInputs, TargetInputs
from transformers_qaig.recipes import recipe_of
from transformers_qaig.scheme import WeightScheme
from transformers_qaig.structure import find_decoder_blocks
from transformers_qaig.token_weights.base import SubBlock, TokenWeights
from transformers_qaig.token_weights.data import WeightingData
from transformers_qaig.token_weights.official_code import UNIFORM_SEARCHES
from transformers_qaig.token_weights.registry import KINDS, precompute, token_weights_of

BITS, GROUP = 3, 32
MODULES = ["self_attn", "mlp", "mlp.down_proj"]


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, dict[str, Group], dict[str, list[GroupInputs]]]:
    """A block with grouped-query attention, its groups, and group inputs with padding at their ends, by f_s."""
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
    gathered, inputs = {}, TargetInputs(by_index, by_index, masks)
    for module in MODULES:
        gathered[module] = gather_group_inputs(block, groups[module], (block, block), inputs, range(len(data)))
        for piece in gathered[module]:
            piece.hidden_q = piece.hidden + 0.1 * piece.hidden.std() * torch.randn(
                piece.hidden.shape, generator=generator
            )
    return block, groups, gathered


def _context(case, module: str, recipe: str, activation_bits: int = 16) -> tuple[GroupContext, BlockDecisions]:
    block, groups, gathered = case
    eight = activation_bits == 8
    scheme = WeightScheme(4 if eight else BITS, -1 if eight else GROUP, sym=eight, activation_bits=activation_bits)
    schemes = {name: scheme for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    group, weights = groups[module], token_weights_of(recipe_of(recipe))
    context = GroupContext(
        block,
        group,
        {name: schemes[name] for name in group.linears},
        [replace(piece) for piece in gathered[module]],
        recipe_of(recipe),
        torch.float32,
        True,
        counts_padding=weights.counts_padding,
    )
    return context, BlockDecisions(schemes)


def _weigh(weights: TokenWeights, context: GroupContext, decisions: BlockDecisions) -> None:
    sub_block = SubBlock(
        context.block, context.block, context.group, context.inputs, decisions.schemes, False, torch.float32, True
    )
    for piece, found in zip(context.inputs, weights.weigh(sub_block)):
        piece.token_weights = found


def _after_the_first_searches(recipe: str) -> TokenWeights:
    weights = token_weights_of(recipe_of(recipe))
    weights.restore({"searches": UNIFORM_SEARCHES})
    return weights


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
    x = piece.hidden
    x0 = piece.hidden_q
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
    for r, real in zip(scores, piece.mask.reshape(-1).split(piece.lengths)):
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
    context, decisions = _context(case, module, recipe, activation_bits)
    _weigh(_after_the_first_searches(recipe), context, decisions)
    # The closed form has no nodes; the reimplementation then takes many.
    tolerance = 2e-2 if nodes == 256 and recipe == "paper" and activation_bits == 16 else 1e-3
    for piece in context.inputs:
        ours = piece.token_weights.reshape(-1).split(piece.lengths)
        for weight, slow in zip(ours, _slow_weights(case, module, piece, activation_bits, recipe == "authors", nodes)):
            if nodes == 256 and tolerance == 1e-3 and recipe == "paper":
                continue  # eight nodes against 256 is no comparison: the other sub-blocks check this rule
            torch.testing.assert_close(weight, slow, rtol=tolerance, atol=tolerance * float(slow.mean()))
            assert slow.std() / slow.mean() > 0.05  # not just uniform


@pytest.mark.parametrize("module", ["self_attn", "mlp.down_proj"])
@pytest.mark.parametrize("activation_bits", [16, 8])
@pytest.mark.parametrize("recipe", ["paper", "authors"])
def test_scales_equal_a_slow_search(case, module: str, activation_bits: int, recipe: str) -> None:
    context, decisions = _context(case, module, recipe, activation_bits)
    _weigh(_after_the_first_searches(recipe), context, decisions)
    found = equalize(context, decisions) or decisions
    inputs = [piece.hidden_q if activation_bits == 8 else piece.hidden for piece in context.inputs]
    rows = [x if recipe == "authors" else x[piece.mask] for x, piece in zip(inputs, context.inputs)]
    a = torch.cat([x.reshape(-1, x.shape[-1]) for x in rows]).abs().mean(0)
    f = context.block.get_submodule(module)
    best, best_loss = torch.ones_like(a), float("inf")
    for point in range(20):
        scale = a.pow(point / 20).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        g = copy.deepcopy(f)
        for name in context.group.linears:
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
        for x, piece in zip(inputs, context.inputs):
            y = _run(g, piece, x / scale if activation_bits == 8 else x)
            total += float(((y - _run(f, piece, x)).abs().mean(-1) * piece.token_weights).sum())
            mass += float(piece.token_weights.sum())
        if total / mass < best_loss:
            best, best_loss = scale, total / mass
    ours = found.scales[0][1] if found.scales else torch.ones_like(a)
    torch.testing.assert_close(ours, best, rtol=1e-4, atol=1e-5)


def test_the_authors_first_searches_are_uniform_over_pictures_and_answers(case) -> None:
    recipe = recipe_of("authors")
    vision = {
        s: torch.arange(n)[None] < 3 for piece in case[2]["self_attn"] for s, n in zip(piece.samples, piece.lengths)
    }
    block = case[0]
    weights = token_weights_of(recipe, known={block: {s: mask.float() for s, mask in vision.items()}})
    kinds = []
    for _ in range(UNIFORM_SEARCHES + 1):
        context, decisions = _context(case, "mlp", "authors")
        _weigh(weights, context, decisions)
        kinds.append({float(w) for piece in context.inputs for w in piece.token_weights.flatten()} == {0.0, 1.0})
    assert kinds == [True] * UNIFORM_SEARCHES + [False]
    # Rounded inputs are weighed from the first search on.
    context, decisions = _context(case, "mlp", "authors", 8)
    _weigh(token_weights_of(recipe), context, decisions)
    assert any(len(piece.token_weights.unique()) > 2 for piece in context.inputs)


def test_where_both_models_agree_the_authors_with_rounded_inputs_scale_nothing(case) -> None:
    context, decisions = _context(case, "mlp", "authors", 8)
    for piece in context.inputs:
        piece.hidden_q = piece.hidden
    _weigh(token_weights_of(context.recipe), context, decisions)
    assert all((piece.token_weights == 0).all() for piece in context.inputs)
    assert equalize(context, decisions) is None


def test_a_resumed_run_counts_the_searches_of_the_blocks_that_it_takes(case) -> None:
    recipe = recipe_of("authors")
    weights, again = token_weights_of(recipe), token_weights_of(recipe)
    for _ in range(UNIFORM_SEARCHES):
        _weigh(weights, *_context(case, "mlp", "authors"))
    again.restore(weights.state())
    for each in (weights, again):
        context, decisions = _context(case, "mlp", "authors")
        _weigh(each, context, decisions)
        assert any(len(piece.token_weights.unique()) > 2 for piece in context.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_token_weights_is_made_and_ignores_padding_or_says_so(case, kind: str) -> None:
    weights = token_weights_of(recipe_of("fast", {"token_weights": kind}))
    context, decisions = _context(case, "mlp", "fast")
    _weigh(weights, context, decisions)
    for piece in context.inputs:
        assert piece.token_weights.shape == piece.mask.shape
        assert weights.counts_padding or (piece.token_weights[~piece.mask] == 0).all()


def test_a_picture_weighs_as_much_as_the_text_when_balanced() -> None:
    real = torch.tensor([[True] * 10 + [False] * 2])
    vision = torch.arange(12)[None] < 8
    recipe, block = recipe_of("fast", {"token_weights": "balanced"}), nn.Identity()
    data = WeightingData(
        nn.Linear(1, 1), [block], numbered([{}]), [real], [real], [vision], device=None, exclusions=Exclusions(1)
    )
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
    given = precompute(
        recipe,
        WeightingData(model, blocks, numbered(data), masks, answers, vision, device=None, exclusions=Exclusions(2)),
    )
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
        torch.testing.assert_close(given[blocks[1]][0], token_importance(gradients[1].unsqueeze(-1), masks[0]))
    else:
        for weights, v, a in zip(given[blocks[0]].values(), vision, answers):
            assert (weights[a] == 1).all()
            assert len(weights[v].unique()) == 1
            assert (weights[~(v | a)] == 0).all()
        assert float(given[blocks[0]][0][vision[0]][0]) == float(given[blocks[0]][1][vision[1]][0])
