"""`QAIGEmbedding`: a lookup is the dequantized weight's rows, in every format, order and class of embedding."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from transformers_qaig.formats import cuda_layout
from transformers_qaig.formats.packing import CHECKPOINT_LAYOUT, CPU_LAYOUT, CUDA_LAYOUT, KERNEL_BITS, num_groups
from transformers_qaig.formats.scheme import WeightScheme
from transformers_qaig.kernels import extension
from transformers_qaig.nn import QAIGEmbedding, QAIGLinear
from transformers_qaig.nn.embedding import tie, why_not_packed
from transformers_qaig.nn.ops import embedding_reference

N, K = 37, 96
IDS = torch.tensor([[0, 36, 5, 5], [17, 16, 15, 31]])


def random_head(bits=3, group_size=32, sym=False, dtype=torch.float32, columns=K):
    groups = num_groups(columns, group_size)
    return QAIGLinear.from_codes(
        torch.randint(0, 2**bits, (N, columns), dtype=torch.uint8),
        (torch.rand(N, groups) * 0.1 + 0.01).to(dtype),
        None if sym else torch.randint(0, 2**bits, (N, groups), dtype=torch.uint8),
        bits=bits,
        group_size=group_size,
    )


def packed(table, **kwargs):
    head = random_head(dtype=table.weight.dtype, columns=table.embedding_dim, **kwargs)
    return QAIGEmbedding.like(table, head.scheme).use_tensors_of(head)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (96, -1), (114, 57), (40, -1)])
def test_a_lookup_gives_the_rows_of_the_dequantized_weight(bits, sym, columns, group_size):
    table = packed(nn.Embedding(N, columns), bits=bits, sym=sym, group_size=group_size)
    rows = table.dequantize()[IDS]
    assert table(IDS).shape == (2, 4, columns)
    assert torch.equal(table(IDS), rows)
    assert torch.equal(table(IDS.int()), rows)
    assert torch.equal(embedding_reference(IDS, *table._weight()), rows)


@pytest.mark.skipif(not extension.load(), reason="no compiled kernels")
@pytest.mark.parametrize("bits", KERNEL_BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (114, 57), (40, -1)])
def test_a_tied_head_is_read_in_its_own_order(bits, sym, columns, group_size):
    head = random_head(bits, group_size, sym, columns=columns)
    table = QAIGEmbedding.like(nn.Embedding(N, columns), WeightScheme(bits, group_size, sym)).use_tensors_of(head)
    tie(head, table)
    rows = table(IDS)
    assert head.to_kernel_layout()
    assert head.layout == table.layout == CPU_LAYOUT
    assert head.weight_packed is table.weight_packed
    assert torch.equal(table(IDS), rows)
    assert torch.equal(embedding_reference(IDS, *table._weight()), rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_tables_dtype_and_casts_leave_the_weight_alone(dtype):
    table = packed(nn.Embedding(N, K, dtype=dtype))
    assert table(IDS).dtype == dtype
    exact = table.dequantize(torch.float32)
    assert torch.equal(table.half()(IDS), exact[IDS].half())


def test_a_models_own_class_keeps_what_it_does():
    original = Gemma3TextScaledWordEmbedding(N, K, padding_idx=2, embed_scale=8.0)
    table = packed(original)
    assert isinstance(table, Gemma3TextScaledWordEmbedding)
    assert isinstance(table, QAIGEmbedding)
    assert torch.equal(table(IDS), table.dequantize()[IDS] * 8.0)
    assert (table.padding_idx, table.num_embeddings, table.embedding_dim) == (2, N, K)
    dense = table.to_dense()
    assert type(dense) is Gemma3TextScaledWordEmbedding
    assert torch.equal(dense(IDS), table(IDS))
    assert dense.state_dict().keys() == original.state_dict().keys()


def test_a_row_of_the_weight_is_dequantized_without_what_the_class_does_to_lookups():
    table = packed(Gemma3TextScaledWordEmbedding(N, K, padding_idx=2, embed_scale=8.0))
    dense = table.dequantize()
    for index in (3, -1, (3, slice(None)), (3, slice(2, 5)), IDS, (IDS, slice(1)), slice(2, 4), (None, 3)):
        assert torch.equal(table.weight[index], dense[index])
    assert table.weight.shape == (N, 0)
    assert (table.weight.dtype, table.weight.device) == (dense.dtype, dense.device)


@pytest.mark.parametrize("original", [nn.Embedding(N, K, 1), Gemma3TextScaledWordEmbedding(N, K, 1, embed_scale=2.0)])
def test_copies_and_pickles(original):
    table = packed(original)
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert type(other) is type(table)
        assert torch.equal(other(IDS), table(IDS))


class Bypass(nn.Embedding):
    def forward(self, input):
        return nn.functional.embedding(input, self.weight)


def test_what_cannot_be_packed_is_refused():
    assert why_not_packed(nn.Embedding(N, K)) == ""
    assert "max_norm" in why_not_packed(nn.Embedding(N, K, max_norm=1.0))
    assert "Bypass" in why_not_packed(Bypass(N, K))
    assert "no nn.Embedding" in why_not_packed(nn.Linear(N, K))
    with pytest.raises(ValueError, match="Bypass"):
        QAIGEmbedding.like(Bypass(N, K), WeightScheme(3, 32))


@pytest.mark.parametrize("bad", [[-1], [N], [2**40]])
def test_ids_out_of_range_are_an_error(bad):
    table = packed(nn.Embedding(N, K))
    with pytest.raises((RuntimeError, IndexError), match=r"within|range"):
        table(torch.tensor(bad))
    with pytest.raises((RuntimeError, IndexError)):
        embedding_reference(torch.tensor(bad), *table._weight())


@pytest.mark.parametrize("kernel", ["op", "reference"])
@pytest.mark.parametrize("damage", ["packed", "scale", "zero", "ids"])
def test_tensors_that_do_not_fit_are_refused(kernel, damage):
    table = packed(nn.Embedding(N, K))
    arguments = [IDS, *table._weight()]
    if damage == "packed":
        arguments[1] = arguments[1][:-1]
    elif damage == "scale":
        arguments[2] = arguments[2].double()
    elif damage == "zero":
        arguments[3] = arguments[3][:, :1].contiguous()
    else:
        arguments[0] = IDS.float()
    function = torch.ops.qaig.embedding if kernel == "op" else embedding_reference
    with pytest.raises((RuntimeError, ValueError), match=damage):
        function(*arguments)


def test_no_ids_no_rows():
    assert packed(nn.Embedding(N, K))(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, K)


class TiedModel(nn.Module):
    """A table and its head, the head registered first or last."""

    def __init__(self, head, table, head_first):
        super().__init__()
        modules = [("head", head), ("table", table)]
        for name, module in modules if head_first else modules[::-1]:
            self.add_module(name, module)


@pytest.mark.skipif(not extension.load(), reason="no compiled kernels")
@pytest.mark.parametrize("head_first", [True, False])
def test_tied_modules_stay_one_tensor_through_moves_copies_and_state(head_first):
    head = random_head(4)
    table = QAIGEmbedding.like(nn.Embedding(N, K), WeightScheme(4, 32)).use_tensors_of(head)
    tie(head, table)
    model = TiedModel(head, table, head_first)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows, head_rows = table(IDS), head.dequantize()
    head.to_kernel_layout()
    for changed in (model, copy.deepcopy(model), model.to(torch.float32), pickle.loads(pickle.dumps(model))):
        assert changed.head.weight_packed is changed.table.weight_packed
        assert changed.head.layout == changed.table.layout == CPU_LAYOUT
        assert torch.equal(changed.table(IDS), rows)
        assert torch.equal(changed.head.dequantize(), head_rows)
    saved = model.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    model.load_state_dict(saved)
    assert head.weight_packed is table.weight_packed
    assert torch.equal(table(IDS), rows)
    assert head.layout == table.layout == CPU_LAYOUT
    table.to_checkpoint_layout()
    assert head.layout == table.layout == CHECKPOINT_LAYOUT
    assert torch.equal(head.dequantize(), head_rows)
    head.to_kernel_layout()
    meta = copy.deepcopy(model).to("meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_tied_modules_must_fit():
    table = packed(nn.Embedding(N, K), bits=4)
    with pytest.raises(ValueError, match="bits differ"):
        tie(random_head(3), table)


def test_compiles_whole_and_checks_as_an_operator():
    torch.compiler.reset()
    for original in (nn.Embedding(N, K), Gemma3TextScaledWordEmbedding(N, K, 0, embed_scale=3.0)):
        table = packed(original)
        compiled = torch.compile(table, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(IDS), table(IDS))
    torch.library.opcheck(torch.ops.qaig.embedding.default, (IDS, *table._weight()))
    torch.compiler.reset()


class ReadsARow(nn.Module):
    """As Gemma 4 does, which puts the row of the padding in the place of pictures."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, ids):
        row = self.table.weight[3, :].to(self.table.weight.device)
        return torch.where((ids == 0)[..., None], row.view(1, 1, -1), self.table(ids).to(self.table.weight.dtype))


def test_a_row_of_the_weight_is_read_in_a_compiled_model_too():
    torch.compiler.reset()
    model = ReadsARow(packed(nn.Embedding(N, K)))
    ids = torch.tensor([[0, 1, 5]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), model(ids))
    torch.compiler.reset()


def in_cuda_layout(bits, group_size=32, sym=False, columns=K):
    head = random_head(bits, group_size, sym, torch.bfloat16, columns)
    stored = head.weight_packed.data, head.weight_scale.data, None if sym else head.weight_zero_point.data
    words, scale, zero = cuda_layout.from_checkpoint(*stored, N, columns, bits, group_size)
    rows = embedding_reference(torch.arange(N), *stored, N, columns, bits, group_size, CHECKPOINT_LAYOUT)
    return (words, scale, None if sym else zero, N, columns, bits, group_size, CUDA_LAYOUT), rows


@pytest.mark.parametrize("bits", KERNEL_BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (114, 57), (40, -1), (320, 64)])
def test_rows_of_the_cuda_order(monkeypatch, bits, sym, columns, group_size):
    monkeypatch.setitem(globals(), "N", 150)  # rows of three blocks, the last one ragged
    weight, rows = in_cuda_layout(bits, group_size, sym, columns)
    assert torch.equal(embedding_reference(torch.arange(150), *weight), rows)
    ids = torch.tensor([[149, 0, 64], [77, 77, 127]])
    assert torch.equal(embedding_reference(ids.int(), *weight), rows[ids])
    assert embedding_reference(ids[:0], *weight).shape == (0, 3, columns)


@pytest.mark.parametrize("bad", [[N], [-1], [63], [64]])
def test_an_id_of_the_padding_is_no_row(bad):
    weight, _ = in_cuda_layout(4)
    with pytest.raises(IndexError):
        embedding_reference(torch.tensor(bad), *weight)


def test_the_cuda_order_is_read_without_looking_at_values():
    """No value of a tensor is asked for, so a CUDA graph can record it: it works for tensors that have none."""
    weight, _ = in_cuda_layout(3)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(part) if isinstance(part, torch.Tensor) else part for part in weight]
        ids = torch.zeros(2, 5, dtype=torch.long)
        assert embedding_reference(ids, *fake).shape == (2, 5, K)


@pytest.mark.parametrize(
    ("index", "value"), [(0, lambda t: t[:, :1]), (1, lambda t: t.double()), (2, lambda t: t[:, :1])]
)
def test_untrusted_tensors_in_cuda_layout(index, value):
    weight, _ = in_cuda_layout(4)
    with pytest.raises(ValueError, match=("packed", "scale", "zero")[index]):
        embedding_reference(IDS, *weight[:index], value(weight[index]), *weight[index + 1 :])
