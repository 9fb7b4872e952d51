"""`QAIGLinear.to_kernel_layout`: the kernels' word order, and that nobody outside the kernels ever sees it."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.nn.cpu_layers import random_layer
from tests.tolerance import assert_close
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT, KERNEL_BITS, unpack, unpack_zero_point
from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGLinear

pytestmark = pytest.mark.skipif(not extension.load(), reason=f"no compiled kernels: {extension.why_not()}")


def prepared(*args, **kwargs):
    layer = random_layer(*args, **kwargs)
    state = copy.deepcopy(layer.state_dict())
    assert layer.to_kernel_layout()
    assert layer.layout == CPU_LAYOUT
    return layer, state


def assert_state(layer, state):
    assert layer.state_dict().keys() == state.keys()
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name


def slot_bits(bits, slot):
    """(word, bit) of every bit of a slot's code, lowest first, from the description in csrc/cpu/layout.h."""
    quad, byte = slot // 4, (0, 2, 1, 3)[slot % 4]
    if bits == 3 and quad >= 6:
        places = [(quad - 6, 6), (quad - 6, 7), (2, quad)]
    else:
        word, first = {
            2: (quad // 4, 2 * (quad % 4)),
            3: (quad // 2, 3 * (quad % 2)),
            4: (quad // 2, 4 * (quad % 2)),
            8: (quad, 0),
        }[bits]
        places = [(word, first + i) for i in range(bits)]
    return [(word, 8 * byte + bit) for word, bit in places]


@pytest.mark.parametrize("bits", KERNEL_BITS)
@pytest.mark.parametrize(("in_features", "group_size"), [(64, 32), (114, 57), (40, -1)])
def test_the_order_is_the_one_described(bits, in_features, group_size):
    layer = random_layer(bits, group_size, out_features=20, in_features=in_features)
    codes, zero = (
        unpack(layer.weight_packed, bits, in_features),
        unpack_zero_point(layer.weight_zero_point, bits, 20),
    )
    scale = layer.weight_scale.detach().clone()
    layer.to_kernel_layout()
    length = in_features if group_size == -1 else group_size
    groups, units = in_features // length, -(-length // 32)
    assert layer.weight_packed.shape == (2, groups * units, bits, 16)
    assert layer.weight_scale.shape == layer.weight_zero_point.shape == (2, groups, 16)
    for row in range(32):
        tile, lane = divmod(row, 16)
        for unit in range(groups * units):
            group, in_group = divmod(unit, units)
            words = [int(word) & 0xFFFFFFFF for word in layer.weight_packed[tile, unit, :, lane]]
            for slot in range(32):
                channel = 32 * in_group + slot
                real = row < 20 and channel < length
                expected = int(codes[row, group * length + channel]) if real else 0
                found = sum((words[w] >> bit & 1) << i for i, (w, bit) in enumerate(slot_bits(bits, slot)))
                assert found == expected, (row, unit, slot)
        if row < 20:
            assert torch.equal(layer.weight_scale[tile, :, lane], scale[row])
            assert torch.equal(layer.weight_zero_point[tile, :, lane], zero[row])


@pytest.mark.parametrize("bits", KERNEL_BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_state_dict_is_in_the_checkpoint_layout_bit_by_bit(bits, sym, dtype):
    layer, state = prepared(bits, 57, sym, out_features=37, in_features=114, dtype=dtype)
    assert_state(layer, state)
    assert layer.layout == CPU_LAYOUT
    assert torch.equal(layer.dequantize(), random_like(layer, state).dequantize())
    layer.to_checkpoint_layout()
    assert layer.layout == CHECKPOINT_LAYOUT
    assert {n: t.shape for n, t in layer.named_parameters()} == {n: t.shape for n, t in state.items()}
    assert_state(layer, state)


def random_like(layer, state):
    fresh = QAIGLinear(
        layer.in_features, layer.out_features, layer.bias is not None, bits=layer.bits, group_size=layer.group_size,
        sym=layer.sym, dtype=layer.weight_scale.dtype,
    )  # fmt: skip
    fresh.load_state_dict(state)
    return fresh


def test_preparing_twice_changes_nothing():
    layer, state = prepared(3)
    words = layer.weight_packed
    assert layer.to_kernel_layout()
    assert layer.weight_packed is words
    assert_state(layer, state)


def test_threads_prepare_undo_and_save_at_the_same_time():
    """Each change takes several steps: a thread that came between them would read tensors of two orders."""
    layer, state = prepared(3, out_features=400, in_features=480)

    def work(i: int) -> None:
        (layer.to_kernel_layout, layer.to_checkpoint_layout)[i % 2]()
        assert_state(layer, state)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(300)))
    finally:
        sys.setswitchinterval(interval)
    assert_state(layer, state)


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_other_widths_stay_as_they_are(bits):
    layer = random_layer(bits)
    assert not layer.to_kernel_layout()
    assert layer.layout == CHECKPOINT_LAYOUT


def test_loads_into_a_prepared_layer():
    layer, _ = prepared(3)
    other = random_layer(3)
    layer.load_state_dict(other.state_dict())
    assert layer.layout == CPU_LAYOUT
    x = torch.randn(3, 96)
    assert torch.equal(layer(x), other(x))


def test_copies_and_casts_stay_prepared():
    layer, state = prepared(3)
    x = torch.randn(3, 96)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.layout == CPU_LAYOUT
    assert torch.equal(twin(x), expected)
    layer.bfloat16()
    assert layer.layout == CPU_LAYOUT
    assert layer.weight_scale.dtype == torch.float32
    layer.float()
    assert_state(twin, state)


def test_another_device_gets_the_checkpoint_layout():
    layer, state = prepared(3)
    layer.to("meta")
    assert layer.layout == CHECKPOINT_LAYOUT
    assert layer.weight_packed.shape == state["weight_packed"].shape
    layer.to_empty(device="cpu").load_state_dict(state)
    assert_state(layer, state)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_layers_stay_in_the_checkpoint_layout(where, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model, x = nn.Sequential(random_layer(3)), torch.randn(2, 96)
    expected = model(x)
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert not model[0].to_kernel_layout()
    assert torch.equal(model(x), expected)


def test_memory_is_not_doubled():
    layer = random_layer(4, 128, out_features=256, in_features=1024, dtype=torch.bfloat16)
    size = sum(p.nbytes for p in layer.parameters())
    layer.to_kernel_layout()
    grown = sum(p.nbytes for p in layer.parameters()) - size
    assert grown == 256 * 8 * (8 - 4) // 8  # zero points take a byte instead of 4 bits


def test_gradients_pass_through_a_prepared_layer():
    layer, x = random_layer(3), torch.randn(5, 96, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    layer.to_kernel_layout()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert_close(gradient, expected, layer.out_features)
    assert torch.autograd.gradcheck(layer, x.detach().double().requires_grad_())


def arguments(layer):
    return [*layer._weight()]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(3, 3, 3, 15, dtype=torch.int32), r"packed must have shape \(3, 3, 3, 16\)"),
        (0, torch.zeros(3, 3, 3, 16), "packed must have dtype int32"),
        (1, torch.zeros(3, 2, 16), r"scale must have shape \(3, 3, 16\)"),
        (2, torch.zeros(3, 3, 15, dtype=torch.uint8), r"zero must have shape \(3, 3, 16\)"),
        (2, torch.zeros(3, 3, 16, dtype=torch.int32), "zero must have dtype uint8"),
        (3, 1000, "packed must have shape"),
        (4, 2**40, "below 2\\^31"),
        (5, 5, "layout=1 is for 2, 3, 4 and 8 bits"),
        (6, 0, "group_size"),
        (7, 3, "layout=3"),
    ],
)
def test_untrusted_tensors_are_refused(position, value, message):
    layer, _ = prepared(3)
    args = arguments(layer)
    args[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.dequantize(*args, 0, 1)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.dequantize_columns(*args, 0, 1)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qaig.repack(*args)


@pytest.mark.parametrize("rows", [(-1, 2), (3, 2), (0, 41)])
def test_rows_outside_the_weight_are_refused(rows):
    layer, _ = prepared(3)
    with pytest.raises(RuntimeError, match="are not within the 40"):
        torch.ops.qaig.dequantize(*arguments(layer), *rows)


@pytest.mark.parametrize("columns", [(-1, 2), (3, 2), (0, 97)])
def test_columns_outside_the_weight_are_refused(columns):
    layer, _ = prepared(3)
    with pytest.raises(RuntimeError, match="are not within the 96"):
        torch.ops.qaig.dequantize_columns(*arguments(layer), *columns)


def test_dequantize_gives_any_rows():
    layer, _ = prepared(3)
    weight = layer.dequantize(torch.float32)
    for start, stop in ((0, 40), (5, 6), (15, 33), (40, 40)):
        assert torch.equal(torch.ops.qaig.dequantize(*arguments(layer), start, stop), weight[start:stop])


def test_the_old_names_of_the_layouts_warn_and_work():
    layer = random_layer(4)
    with pytest.warns(FutureWarning, match=r"to_kernel_layout\(\)"):
        assert layer.prepare() == (layer.layout != CHECKPOINT_LAYOUT)
    with pytest.warns(FutureWarning, match=r"to_checkpoint_layout\(\)"):
        layer.unprepare()
    assert layer.layout == CHECKPOINT_LAYOUT
