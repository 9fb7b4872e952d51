"""`QAIGEmbedding`: replaces an `nn.Embedding`; it holds packed rows instead of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.scheme import WeightScheme
from .packed_module import PackedModule


class QAIGEmbedding(PackedModule, nn.Embedding):
    """Embeddings whose rows are packed; a lookup dequantizes only the rows that it reads.

    The packed tensors are those of [`PackedModule`], with N = `num_embeddings` rows of K = `embedding_dim`. They stay
    in the checkpoint layout, from which single rows are read fastest. Embeddings that are tied to a head (`tie`) hold
    the same tensors as the head, in the layout of the head.

    What a model's own class does around the lookup stays, such as Gemma's scaling of the result. For that, [`like`]
    makes a subclass of it, in which this class takes the place of `nn.Embedding`.
    """

    num_embeddings: int
    embedding_dim: int

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int,
        group_size: int,
        sym: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        PackedModule.__init__(
            self, embedding_dim, num_embeddings, bits=bits, group_size=group_size, sym=sym, dtype=dtype, device=device
        )
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, None

    @classmethod
    def like(
        cls, embeddings: nn.Embedding, scheme: WeightScheme, device: torch.device | str | None = None
    ) -> QAIGEmbedding:
        """Makes empty packed embeddings in the place of `embeddings`, with their class's behaviour and attributes.

        Args:
            embeddings: `[N, K]` in float16, bfloat16 or float32, the dtype of the scales.
            scheme: bits, groups and symmetry.
            device: of the packed tensors; None for that of `embeddings`.

        Raises:
            ValueError: the class of `embeddings` cannot be kept, or a value is out of range.
        """
        packed = _empty(type(embeddings))
        device = embeddings.weight.device if device is None else device
        QAIGEmbedding.__init__(
            packed, *embeddings.weight.shape, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
            dtype=embeddings.weight.dtype, device=device,
        )  # fmt: skip
        packed.train(embeddings.training)
        vars(packed).update(_attributes(embeddings, besides=packed))
        packed.padding_idx = embeddings.padding_idx
        for name, buffer in embeddings.named_buffers(recurse=False):
            packed.register_buffer(name, buffer, persistent=name not in embeddings._non_persistent_buffers_set)
        if reason := why_not_packed(embeddings):
            raise ValueError(reason)
        return packed

    def use_tensors_of(self, packed: PackedModule) -> QAIGEmbedding:
        """Takes over the packed tensors of a layer of the same shape and format, and returns itself.

        Args:
            packed: the layer.

        Raises:
            ValueError: the layer has another shape or format.
        """
        _check_alike(packed, self)
        for name in self._packed_names():
            setattr(self, name, getattr(packed, name))
        self.layout = packed.layout
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Looks up rows.

        Args:
            input: ids, int32 or int64, any shape, values 0 to `num_embeddings` - 1.

        Returns:
            `[*input.shape, embedding_dim]` in the compute dtype.
        """
        tensors = self._parameters
        rows = torch.ops.qaig.embedding.default(
            input,
            tensors["weight_packed"],
            tensors["weight_scale"],
            tensors["weight_zero_point"],
            self.out_features,
            self.in_features,
            self.bits,
            self.group_size,
            self.layout,
        )
        return rows.to(self.compute_dtype)

    def to_kernel_layout(self) -> bool:
        """Prepares a tied head; otherwise does nothing, because rows are read fastest in the checkpoint layout."""
        return any(other.to_kernel_layout() for other in self._sharing() if other is not self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """An empty tensor `[num_embeddings, 0]` that shows the number of rows, the compute dtype and the device.

        Indexing it returns dequantized rows: some models read the row of the padding. Other code that computes with it
        fails at once. `dequantize` returns all values.
        """
        stand_in = self._stand_in(self.num_embeddings, 0)
        if torch.compiler.is_compiling():
            return _TracedRows(self, stand_in)  # type: ignore[return-value]
        rows = stand_in.as_subclass(_Rows)
        rows.embeddings = self
        rows._is_hf_initialized = True
        return rows

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Embedding:
        """Makes embeddings of the model's own class from the dequantized weight.

        Args:
            dtype: of the weight; None for the compute dtype.
        """
        dense = _original(type(self)).__new__(_original(type(self)))
        nn.Module.__init__(dense)
        dense.weight = nn.Parameter(self.dequantize(dtype))
        vars(dense).update({k: v for k, v in _attributes(self, besides=dense).items() if k not in _OWN})
        for name, buffer in self.named_buffers(recurse=False):
            dense.register_buffer(name, buffer, persistent=name not in self._non_persistent_buffers_set)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Sizes and format, for `print(model)`."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}, group_size={self.group_size}, "
            f"sym={self.sym}, tied={bool(self.tied_to)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (_original(type(self)),), self.__dict__  # pickle finds no class that was made here


class _Rows(Tensor):
    """What stands for the weight of packed embeddings, with rows that are dequantized when they are indexed."""

    embeddings: QAIGEmbedding
    _is_hf_initialized: bool

    def __getitem__(self, index: Any) -> Tensor:
        return _rows(self.embeddings, index, self.device)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class _TracedRows:
    """The same where `torch.compile` follows: it traces classes of Python, but not that subclass of Tensor."""

    def __init__(self, embeddings: QAIGEmbedding, stand_in: Tensor):
        self.embeddings, self.stand_in = embeddings, stand_in

    def __getitem__(self, index: Any) -> Tensor:
        return _rows(self.embeddings, index, self.stand_in.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stand_in, name)


def _rows(embeddings: QAIGEmbedding, index: Any, device: torch.device) -> Tensor:
    """Returns what indexing the dequantized weight gives; ids in the first place read their rows alone."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    ids = torch.as_tensor(first, device=device) if isinstance(first, (int, Tensor)) else None
    if ids is None or ids.dtype == torch.bool:
        return embeddings.dequantize()[index]
    rows = QAIGEmbedding.forward(embeddings, (ids % embeddings.num_embeddings).reshape(-1))
    return rows.reshape(*ids.shape, -1)[(slice(None),) * ids.ndim + tuple(rest)]


_OWN = ("in_features", "out_features", "bits", "group_size", "sym", "compute_dtype", "layout", "tied_to")


def why_not_packed(embeddings: nn.Module) -> str:
    """Returns why `embeddings` cannot become a [`QAIGEmbedding`]; empty if it can. Works on the meta device."""
    name = type(embeddings).__name__
    if not isinstance(embeddings, nn.Embedding):
        return f"{name} is no nn.Embedding"
    if isinstance(embeddings, QAIGEmbedding):
        return f"{name} is packed already"
    if embeddings.max_norm is not None:
        return f"{name} renormalises its rows in place (`max_norm`), which packed ones cannot be"
    others = [key for key, _ in embeddings.named_parameters() if key != "weight"]
    if others or next(embeddings.children(), None) is not None:
        return f"{name} has more than a weight: {', '.join(others) or 'modules'}"
    trial = _empty(type(embeddings))
    vars(trial).update(_attributes(embeddings, besides=trial))
    QAIGEmbedding.__init__(trial, 2, embeddings.embedding_dim, bits=8, group_size=-1, device="meta")
    for key, buffer in embeddings.named_buffers(recurse=False):
        trial.register_buffer(key, torch.empty_like(buffer, device="meta"), persistent=False)
    try:
        shape = trial(torch.zeros(1, dtype=torch.long, device="meta")).shape
    except Exception as error:
        return f"{name} does not look up through nn.Embedding.forward ({error})"
    return "" if shape == (1, embeddings.embedding_dim) else f"{name} does not look up through nn.Embedding.forward"


def _attributes(module: nn.Module, besides: nn.Module) -> dict[str, Any]:
    """Returns what a module's class has set on it, except what `besides` has. A `forward` there is a hook's wrapper."""
    found = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "forward"}
    return {name: value for name, value in found.items() if name not in vars(besides)}


def tie(head: PackedModule, embeddings: QAIGEmbedding) -> None:
    """Makes `head` hold the very tensors of `embeddings`. Later changes of their layout or device reach both.

    Args:
        head: a packed head.
        embeddings: packed embeddings.

    Raises:
        ValueError: they are not made for the same tensors.
    """
    _check_alike(head, embeddings)
    head.to_checkpoint_layout()
    embeddings.to_checkpoint_layout()
    for name in embeddings._packed_names():
        setattr(head, name, getattr(embeddings, name))
    head.tied_to, embeddings.tied_to = (embeddings,), (head,)


def tied_names(ties: Mapping[str, str], sym: bool, head: str, embeddings: str) -> dict[str, str]:
    """Returns the tied weights `ties` (target → source) with packed tensors in the place of the weights."""
    names = ["weight_packed", "weight_scale", *([] if sym else ["weight_zero_point"]), "weight_shape"]
    rest = {target: source for target, source in ties.items() if target != f"{head}.weight"}
    return {**rest, **{f"{head}.{name}": f"{embeddings}.{name}" for name in names}}


def _check_alike(one: PackedModule, other: PackedModule) -> None:
    for name in ("out_features", "in_features", "bits", "group_size", "sym"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(
                f"a head and embeddings that are tied are one tensor, but their {name} differ: "
                f"{getattr(one, name)} and {getattr(other, name)}"
            )


@cache
def _packed_class(original: type[nn.Embedding]) -> type[QAIGEmbedding]:
    """Makes `original` with `QAIGEmbedding` between it and `nn.Embedding`: `super().forward` then reads packed rows."""
    if original is nn.Embedding:
        return QAIGEmbedding
    return type(f"QAIG{original.__name__}", (original, QAIGEmbedding), {"__doc__": QAIGEmbedding.__doc__})


def _original(packed: type[QAIGEmbedding]) -> type[nn.Embedding]:
    return nn.Embedding if packed is QAIGEmbedding else packed.__bases__[0]


def _empty(original: type[nn.Embedding]) -> QAIGEmbedding:
    packed = _packed_class(original)  # type: ignore[arg-type]
    return packed.__new__(packed)
