"""Stacks of experts as linears and packed, for every way in which models store them."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.experts import CONFIGS, build, inputs_of, stack_of
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT
from transformers_qaig.formats.scheme import Rotation, WeightScheme
from transformers_qaig.nn.experts import QAIGExperts
from transformers_qaig.nn.experts_checks import check_packed_experts
from transformers_qaig.nn.experts_layout import experts_layout
from transformers_qaig.nn.experts_module import LinearExperts
from transformers_qaig.nn.linear import QAIGLinear
from transformers_qaig.nn.projection_scheme import ProjectionScheme
from transformers_qaig.rounding.quant_grid import minmax_grid

BITS = (4, 3, 2, 8, 5, 6, 7, 4)


def experts(name: str) -> nn.Module:
    model = build(name)
    return model.get_submodule(stack_of(model)[0])


def packed_linears(stack: nn.Module, sym: bool = False) -> LinearExperts:
    """Rounds every expert to nearest, each at a width of its own."""
    linears = LinearExperts.of(stack)
    for e in range(linears.stack.num_experts):
        for name in linears.stack.projections:
            weight = linears.get_submodule(f"{e}.{name}").weight.data
            grid = minmax_grid(weight, bits=BITS[e], group_size=32, sym=sym, storage_dtype=torch.float32)
            zero = None if sym else grid.zero_point.to(torch.uint8)
            layer = QAIGLinear.from_codes(grid.encode(weight), grid.scale, zero, bits=BITS[e], group_size=32)
            linears.get_submodule(str(e)).add_module(name, layer)
    return linears


@pytest.fixture(scope="module", params=CONFIGS)
def stack(request: pytest.FixtureRequest) -> nn.Module:
    return experts(request.param)


def schemes(stack: nn.Module, sym: bool = False) -> dict[str, ProjectionScheme]:
    layout = experts_layout(stack)
    assert layout is not None
    return {name: ProjectionScheme(BITS[: layout.num_experts], 32, sym, 16) for name in layout.projections}


@torch.no_grad()
def test_linears_compute_what_the_stack_does(stack: nn.Module) -> None:
    linears = LinearExperts.of(stack)
    inputs = inputs_of(linears.stack)
    torch.testing.assert_close(linears(*inputs), stack(*inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tensors_may_take_the_place_of_parameters(stack: nn.Module) -> None:
    linears = LinearExperts.of(stack)
    inputs = inputs_of(linears.stack)
    copies = {name: parameter.detach().clone() for name, parameter in linears.named_parameters()}
    assert torch.equal(torch.func.functional_call(linears, copies, inputs), linears(*inputs))


def test_linears_share_the_stacks_memory(stack: nn.Module) -> None:
    linear = LinearExperts.of(stack).get_submodule("1.down_proj")
    own = stack.get_parameter("down_proj").data.untyped_storage().data_ptr()
    assert linear.weight.untyped_storage().data_ptr() == own


@torch.no_grad()
@pytest.mark.parametrize("sym", [False, True])
def test_packed_experts_compute_what_their_linears_do(stack: nn.Module, sym: bool) -> None:
    linears = packed_linears(stack, sym)
    packed = QAIGExperts.from_linears(linears)
    inputs = inputs_of(packed.stack)
    torch.testing.assert_close(packed(*inputs), linears(*inputs), rtol=1e-4, atol=1e-4)
    check_packed_experts(packed, "experts")


@torch.no_grad()
def test_back_to_the_models_own_class(stack: nn.Module) -> None:
    packed = QAIGExperts.from_linears(packed_linears(stack))
    dense, inputs = packed.to_dense(), inputs_of(packed.stack)
    assert type(dense) is type(stack)
    assert dense.state_dict().keys() == stack.state_dict().keys()
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in stack.state_dict().items()}
    torch.testing.assert_close(dense(*inputs), packed(*inputs), rtol=1e-4, atol=1e-4)


def test_an_empty_stack_takes_the_tensors_of_a_filled_one(stack: nn.Module) -> None:
    filled = QAIGExperts.from_linears(packed_linears(stack))
    empty = QAIGExperts.like(stack, schemes(stack))
    empty.load_state_dict(filled.state_dict())
    inputs = inputs_of(filled.stack)
    with torch.no_grad():
        assert torch.equal(empty(*inputs), filled(*inputs))
    assert isinstance(empty, type(stack))


def test_tensors_of_another_dtype_are_an_error() -> None:
    filled = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    state = filled.state_dict()
    state["down_proj_scale"] = state["down_proj_scale"].half()
    with pytest.raises(RuntimeError, match=r"down_proj_scale has dtype torch.float16"):
        filled.load_state_dict(state)


def test_casts_and_moves_leave_the_packed_tensors_alone() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    packed.half()
    assert packed.compute_dtype == torch.float16
    assert all(torch.equal(tensor, before[name]) for name, tensor in packed.state_dict().items())
    assert packed.to("meta").is_offloaded


@torch.no_grad()
def test_copies_and_pickles_compute_the_same() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("gpt_oss")))
    inputs = inputs_of(packed.stack)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin(*inputs), packed(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("index", [-1, 5, 1000])
def test_an_index_of_no_expert_is_an_error(index: int) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, chosen, weights = inputs_of(packed.stack)
    chosen[2, 1] = index
    with pytest.raises(ValueError, match="indices of the chosen experts must be from 0 to 4"):
        packed(hidden, chosen, weights)


@torch.no_grad()
@pytest.mark.parametrize("columns", [[0], [0, 1, 1]])
def test_weights_of_more_or_fewer_experts_are_an_error(columns: list[int]) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, chosen, weights = inputs_of(packed.stack)
    with pytest.raises(ValueError, match=f"as many weights as experts, got {len(columns)} for 2 experts"):
        packed(hidden, chosen, weights[:, columns])


@pytest.mark.parametrize("rows", [(5, 5), (6, 5), (5, 6)], ids=["both", "weights", "experts"])
def test_experts_of_fewer_tokens_are_an_error(rows: tuple[int, int]) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, chosen, weights = inputs_of(packed.stack)
    for leaf in (hidden, hidden.clone().requires_grad_()):
        with pytest.raises(ValueError, match=f"6 tokens need .* weights, got {rows[0]} and {rows[1]}"):
            packed(leaf, chosen[: rows[0]], weights[: rows[1]])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "longcat_flash"])
def test_indices_of_every_integer_dtype(name: str, dtype: torch.dtype) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts(name)))
    hidden, chosen, weights = inputs_of(packed.stack)
    assert torch.equal(packed(hidden, chosen.to(dtype), weights), packed(hidden, chosen, weights))


@torch.no_grad()
def test_the_index_after_the_last_expert_means_none() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, chosen, weights = inputs_of(packed.stack)
    without = weights.clone()
    without[2, 1] = 0
    wanted = packed(hidden, chosen, without)
    chosen[2, 1] = packed.stack.num_experts
    torch.testing.assert_close(packed(hidden, chosen, weights), wanted)


@torch.no_grad()
def test_arguments_may_come_by_name() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("gpt_oss")))
    hidden, chosen, weights = inputs_of(packed.stack)
    named = packed(hidden, routing_weights=weights, router_indices=chosen)
    assert torch.equal(named, packed(hidden, chosen, weights))


@torch.no_grad()
def test_no_token_is_no_error() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, chosen, weights = inputs_of(packed.stack)
    assert packed(hidden[:0], chosen[:0], weights[:0]).shape == (0, 64)


@torch.no_grad()
def test_experts_without_tokens_are_not_read() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    inputs = inputs_of(packed.stack, skip=2)
    wanted = packed(*inputs)
    for projection in packed.stack.projections:
        packed.get_parameter(f"{projection}_scale").data[2] = torch.nan
    assert torch.equal(packed(*inputs), wanted)


@torch.no_grad()
@pytest.mark.parametrize("chosen", [[[1, 1], [3, 3], [1, 1]], [[2, 2]] * 3, [[4, 4]] * 3, [[0, 4], [4, 0], [3, 4]]])
def test_experts_may_be_chosen_twice_by_a_token_by_all_or_by_none(chosen: list[list[int]]) -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    hidden, _, weights = (tensor[:3] for tensor in inputs_of(packed.stack))
    index = torch.tensor(chosen)
    expected = torch.zeros(3, 64)
    for token, slot in ((token, slot) for token in range(3) for slot in range(2) if chosen[token][slot] < 4):
        alone = packed(hidden[token : token + 1], index[token : token + 1, slot : slot + 1], torch.ones(1, 1))
        expected[token] += weights[token, slot] * alone[0]
    torch.testing.assert_close(packed(hidden, index, weights), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_input_and_the_routing_weights() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    dense = packed.to_dense()
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    grads = []
    for module in (packed, dense):
        hidden, chosen, weights = inputs_of(packed.stack)
        hidden.requires_grad_()
        weights.requires_grad_()
        module(hidden, chosen, weights).square().sum().backward()
        grads.append((hidden.grad, weights.grad))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_shows_the_dtype_has_no_elements() -> None:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    assert packed.gate_up_proj.dtype == torch.float32
    assert packed.down_proj.numel() == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (WeightScheme(4, 64), "may differ in `bits` only"),
        (WeightScheme(4, 32, sym=True), "may differ in `bits` only"),
        (WeightScheme(4, 32, rotation=Rotation(16, 0)), "cannot be rotated"),
    ],
)
def test_experts_differ_in_bits_alone(other: WeightScheme, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectionScheme.of([WeightScheme(4, 32), other], "experts")


def _poisoned(name: str, change: object) -> QAIGExperts:
    packed = QAIGExperts.from_linears(packed_linears(experts("mixtral")))
    tensor = packed.get_parameter(name).data
    packed.register_parameter(name, nn.Parameter(change(tensor), requires_grad=False))
    return packed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("down_proj_packed", lambda t: t[:-1], "has shape"),
        ("down_proj_packed", lambda t: t.long(), "has dtype"),
        ("up_proj_zero_point", lambda t: t[1:], "has shape"),
        ("gate_proj_scale", lambda t: t.double(), "has dtype"),
        ("gate_proj_scale", lambda t: t * torch.inf, "not finite"),
        ("gate_proj_scale", lambda t: -t, "negative"),
    ],
)
def test_damaged_tensors_are_named(name: str, change: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"experts.{name} has .*{message}|experts.{name} {message}"):
        check_packed_experts(_poisoned(name, change), "experts", negative_scales=False)


def test_a_module_of_another_kind_is_no_stack() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.empty(4, 96, 64))
            self.down_proj = nn.Parameter(torch.empty(4, 64, 40))

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert experts_layout(Other()) is None
    with pytest.raises(ValueError, match="no stack of experts"):
        LinearExperts.of(Other())
    assert QAIGExperts.from_linears(packed_linears(experts("mixtral"))).layout == CHECKPOINT_LAYOUT
