"""Arguments of operators in Python: what is refused, by which name, and what passes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformers_qaig.formats import checks, cuda_layout
from transformers_qaig.formats.hadamard import Rotation
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CUDA_LAYOUT, packed_shapes
from transformers_qaig.formats.reference import Weight

N, K, BITS, GROUP = 40, 96, 3, 32
X = torch.zeros(5, K)


@pytest.mark.parametrize("bits", [8, 16])
def test_activations_of_8_and_16_bits_pass(bits: int) -> None:
    checks.check_activation_bits(bits)


@pytest.mark.parametrize("bits", [0, 4, 15, 32])
def test_other_activation_bits_are_named(bits: int) -> None:
    with pytest.raises(NotImplementedError, match=f"activation_bits={bits} .* use 16 or 8"):
        checks.check_activation_bits(bits)


def test_lists_have_an_entry_for_each_layer() -> None:
    packed = [X, X]
    checks.check_lists(packed, [1, 2], [None, None])
    checks.check_lists([], [])
    for other in ([], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match="one entry per layer"):
            checks.check_lists(packed, [1, 2], other)


@pytest.mark.parametrize("shape", [(K,), (5, K), (2, 5, K), (0, K)])
def test_an_input_of_any_rank_passes_by_its_last_dimension(shape: tuple[int, ...]) -> None:
    checks.check_input(torch.zeros(shape), K)


@pytest.mark.parametrize("shape", [(), (5,), (K, 5), (5, K + 1), (5, K, 1)])
def test_an_input_of_another_width_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"shape \[\.\.\., {K}\]") as error:
        checks.check_input(torch.zeros(shape), K)
    assert str(shape) in str(error.value)


def test_an_input_is_a_tensor_and_not_nested() -> None:
    with pytest.raises(ValueError, match="must be a tensor, got list"):
        checks.check_input([0.0] * K, K)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x .* is nested: call x\.to_padded_tensor\(0\)"):
        checks.check_input(torch.nested.nested_tensor([X, X]), K)


@pytest.mark.parametrize(
    ("tensor", "kind", "remedy"),
    [
        (X.to_sparse(), "torch.sparse_coo", "to_dense"),
        (X.to_sparse_csr(), "torch.sparse_csr", "to_dense"),
        (X.to_mkldnn(), "torch._mkldnn", "to_dense"),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "quantized by torch", "dequantize"),
        (torch.nested.nested_tensor([X]), "nested", "to_padded_tensor"),
    ],
)
def test_a_tensor_that_is_not_dense_is_refused_with_the_call_that_helps(tensor: Tensor, kind: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"scale must be an ordinary dense tensor.*{kind}.*call scale\.{remedy}\("):
        checks.check_dense("scale", tensor)


def test_a_missing_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="bias must be a tensor, got None"):
        checks.check_dense("bias", None)


@pytest.mark.parametrize("tensor", [X, nn.Parameter(X.clone()), X.T, X[1:, ::3], X[:0], torch.zeros(())])
def test_dense_tensors_and_views_pass(tensor: Tensor) -> None:
    checks.check_dense("x", tensor)


def test_a_tensor_whose_memory_was_freed_is_refused() -> None:
    whole = torch.zeros(4, 6)
    views = {"x": whole, "row": whole[3:], "column": whole[:, 5], "transposed": whole.T}
    whole.untyped_storage().resize_(4 * 6 * 4 - 4)  # the last element is gone
    for name, view in views.items():
        with pytest.raises(ValueError, match=f"{name} has memory of 92 bytes, .* needs 96: it was freed"):
            checks.check_dense(name, view)
    checks.check_dense("x", whole[:3])
    whole.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="Gather the parameters first"):
        checks.check_dense("x", whole)
    checks.check_dense("x", whole[:, :0])


class Wrapper(Tensor):
    """A tensor that holds its values in another one."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Wrapper":
        return Tensor._make_wrapper_subclass(cls, held.shape)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


def test_tensors_without_memory_of_their_own_are_not_looked_into() -> None:
    on_meta = torch.empty(3, device="meta")
    on_meta.untyped_storage().resize_(0)
    checks.check_dense("x", on_meta)
    checks.check_dense("x", Wrapper(torch.zeros(3)))
    seen = []
    torch.func.vmap(lambda row: (seen.append(checks.check_dense("row", row)), row)[1])(X)
    assert seen == [None]


def test_all_tensors_of_a_call_are_on_one_device() -> None:
    checks.check_dispatchable("x", X, scale=X, zero=None)
    with pytest.raises(ValueError, match="scale is on meta but the input is on cpu: move both to one device"):
        checks.check_dispatchable("x", X, zero=X, scale=X.to("meta"))
    with pytest.raises(ValueError, match="scale is on cpu but the input is on meta"):
        checks.check_dispatchable("x", X.to("meta"), scale=X)
    with pytest.raises(ValueError, match="bias must be an ordinary dense tensor"):
        checks.check_dispatchable("x", X, bias=X.to_sparse())


@pytest.mark.parametrize("dtype", checks.ACTIVATION_DTYPES)
def test_floating_activations_pass(dtype: torch.dtype) -> None:
    checks.check_activation("x", torch.zeros(K, dtype=dtype))


@pytest.mark.parametrize("x", [torch.tensor(1.0), X.int(), X.bool(), X.to(torch.complex64), X.to(torch.float8_e5m2)])
def test_other_activations_are_refused_with_dtype_and_shape(x: Tensor) -> None:
    with pytest.raises(ValueError, match="grad must be a floating tensor with at least one dimension") as error:
        checks.check_activation("grad", x)
    assert f"{x.dtype} of shape {tuple(x.shape)}" in str(error.value)


def test_a_rotation_is_made_of_block_and_seed() -> None:
    assert checks.checked_rotation(0, -5, K) is None
    assert checks.checked_rotation(32, 7, K) == Rotation(32, 7)
    for block, seed in ((64, 0), (-32, 0), (32, -1), (48, 0)):
        with pytest.raises(ValueError, match=r"(block|seed) must be"):
            checks.checked_rotation(block, seed, K)


def in_checkpoint_layout(sym: bool = False, **changed: Any) -> Weight:
    shapes = packed_shapes(N, K, BITS, GROUP, sym=False)
    packed, zero = (torch.zeros(shapes[name][0], dtype=torch.int32) for name in ("weight_packed", "weight_zero_point"))
    scale = torch.zeros(shapes["weight_scale"][0])
    weight = Weight(packed, scale, None if sym else zero, N, K, BITS, GROUP, CHECKPOINT_LAYOUT)
    return weight._replace(**changed)


def in_cuda_layout(sym: bool = False, **changed: Any) -> Weight:
    words, rows = cuda_layout.shapes(N, K, BITS, GROUP)
    zero = None if sym else torch.zeros(rows, dtype=torch.uint8)
    weight = Weight(torch.zeros(words, dtype=torch.int32), torch.zeros(rows), zero, N, K, BITS, GROUP, CUDA_LAYOUT)
    return weight._replace(**changed)


LAYOUTS = {
    "checkpoint": (in_checkpoint_layout, checks.check_checkpoint_layout),
    "cuda": (in_cuda_layout, checks.check_cuda_layout),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_of_its_layout_passes(layout: str, sym: bool, dtype: torch.dtype) -> None:
    make, check = LAYOUTS[layout]
    weight = make(sym)
    check(X, weight._replace(scale=weight.scale.to(dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["packed", "scale", "zero"])
def test_each_tensor_of_a_weight_is_checked(layout: str, name: str) -> None:
    make, check = LAYOUTS[layout]
    tensor = getattr(make(), name)
    for changed, message in (
        (tensor[..., :-1], rf"{name} must have shape .*: the packed weight does not match its layer"),
        (tensor.double(), f"{name} must have dtype .*, got torch.float64"),
        (tensor.to("meta"), f"{name} is on meta but the input is on cpu"),
        (tensor.to_sparse(), f"{name} must be an ordinary dense tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            check(X, make(**{name: changed}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changed", [{"out_features": N + 32}, {"in_features": K - 32}, {"bits": 4}, {"group_size": 48}]
)
def test_sizes_that_are_not_those_of_the_tensors_are_refused(layout: str, changed: dict[str, int]) -> None:
    make, check = LAYOUTS[layout]
    with pytest.raises(ValueError, match="must have shape"):
        check(X, make(**changed))


@pytest.mark.parametrize("bits", [1, 5, 6, 7, 9])
def test_the_cuda_layout_has_few_widths(bits: int) -> None:
    with pytest.raises(ValueError, match=f"2, 3, 4 and 8 bits, got bits={bits}"):
        checks.check_cuda_layout(X, in_cuda_layout(bits=bits))


@pytest.mark.parametrize("name", ["out_features", "in_features"])
@pytest.mark.parametrize("size", [0, -1, 1 << 24, 1 << 62])
def test_the_cuda_kernels_count_in_32_bits(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"positive out_features and in_features below 2\^24.*") as error:
        checks.check_cuda_layout(X, in_cuda_layout(**{name: size}))
    assert str(size) in str(error.value)


def test_another_reason_for_a_shape_is_given() -> None:
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(2,\): one for each output"):
        checks.check_tensor("bias", torch.zeros(2), (3,), (torch.float32,), X, "one for each output")
    checks.check_tensor("bias", torch.zeros(3), (3,), (torch.float32,), X)
