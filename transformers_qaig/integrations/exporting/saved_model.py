"""Reads a saved quantized model for an export: what config.json and the headers say, and one tensor at a time.

The model exists on the meta device only, for the names and kinds of its modules. Its weights stay in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...config import QUANT_METHOD, QAIGConfig
from ...formats.experts import ExpertWeights
from ...formats.packing import CHECKPOINT_LAYOUT
from ...formats.reference import Weight
from ...formats.scheme import Plan, WeightScheme
from ...loading.conversions import is_packed_name
from ...loading.local_names import loader_naming, merging, model_that_saved
from ...loading.packed_checkpoint import open_packed
from ...loading.shards import LARGEST_INDEX, StoredTensor, check_files, read_headers
from ...loading.text_config import LARGEST_CONFIG
from ...nn.checks import LARGEST_WEIGHT, check_finite
from ...nn.experts import QAIGExperts
from ...nn.experts_layout import expert_path, split_path
from ...nn.linear import QAIGLinear
from ...nn.packed_module import PackedModule
from ...utils.errors import SettingError, reason
from ...utils.json_file import read_json
from ...utils.quote import quote
from ..engines.permuted_rows import permutes_rows, reshapes_packed


@dataclass(frozen=True)
class PackedWeight:
    """One packed weight of a saved model.

    Attributes:
        path: of its module in the model; of an expert `….experts.{e}.gate_proj`.
        key: its path in the files, without `.weight_packed`; of an expert as `path`, below the stack's name there.
        scheme: bits, groups and symmetry.
        out_features: N.
        in_features: K.
        kind: `"linear"`, `"embedding"` or `"expert"`.
    """

    path: str
    key: str
    scheme: WeightScheme
    out_features: int
    in_features: int
    kind: str


class SavedModel:
    """A folder that `save_pretrained` wrote.

    Args:
        folder: its path.

    Raises:
        SettingError: the folder holds no packed model that can be read without running code of its own.
        ValueError: the checkpoint is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = _read_config(folder)
        self.files = _weight_files(folder)
        check_files(self.files, str(folder))
        model = model_that_saved(self.files)
        if model is None:
            raise SettingError(
                f"{folder}: its class, {quote(self.config.get('architectures'))}, is none of this Transformers. Export "
                "reads no code from a folder: it knows the classes that Transformers brings."
            )
        self.model: PreTrainedModel = model
        """On the meta device, with packed modules in place."""
        settings = QAIGConfig.from_dict(self.config["quantization_config"])
        assert isinstance(settings, QAIGConfig)
        opened = open_packed(model, self.files, settings)
        self.settings = opened.config
        self.plan: Plan = opened.plan
        self._handles = {Path(file).name: safe_open(file, "pt") for file in self.files}

    @cached_property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Name in the model → what a header says of it."""
        return read_headers(self.files, loader_naming(self.model), merging(self.model))[0]

    @cached_property
    def packed(self) -> dict[str, PackedWeight]:
        """Every packed weight by its path, in the order of the plan. A head that is tied to the embeddings is none."""
        return {weight.path: weight for weight in map(self._packed, self.plan) if weight is not None}

    @cached_property
    def is_tied(self) -> bool:
        """Whether head and embeddings are one packed tensor."""
        return len(self.packed) < len(self.plan)

    def _packed(self, path: str) -> PackedWeight | None:
        parts, scheme = split_path(path), self.plan[path]
        if parts is not None:
            module = self.model.get_submodule(parts[0])
            if isinstance(module, QAIGExperts):
                stored = self.stored[f"{parts[0]}.{parts[2]}_packed"]
                key = expert_path(stored.key.rpartition(".")[0], parts[1], parts[2])
                return PackedWeight(path, key, scheme, *module.stack.shape(parts[2]), kind="expert")
        module = self.model.get_submodule(path)
        assert isinstance(module, PackedModule)
        found = self.stored.get(f"{path}.weight_packed")
        if found is None:  # tied
            return None
        kind = "linear" if isinstance(module, QAIGLinear) else "embedding"
        sizes = module.out_features, module.in_features
        return PackedWeight(path, found.key.removesuffix(".weight_packed"), scheme, *sizes, kind=kind)

    def permutes_rows(self, path: str) -> bool:
        """Returns whether vLLM permutes the rows of a linear as it loads a file."""
        return permutes_rows(self._text_type, path)

    def reshapes_packed(self, path: str) -> bool:
        """Returns whether vLLM reshapes the tensors of a linear as it loads a file."""
        return reshapes_packed(self._text_type, path)

    @property
    def _text_type(self) -> str:
        return str(self.model.config.get_text_config(decoder=True).model_type)

    def unpacked_linears(self) -> list[str]:
        """Lists the paths of linears in full precision."""
        return [path for path, module in self.model.named_modules() if isinstance(module, nn.Linear)]

    def tensor(self, name: str) -> Tensor:
        """Reads a tensor by its name in the model."""
        stored = self.stored[name]
        return self.read(stored.key, stored.file)

    def weight(self, packed: PackedWeight) -> Weight:
        """Reads the words, scales and zero points of a packed weight, in the checkpoint's layout.

        Raises:
            ValueError: the scales are not finite, or `weight_shape` is of another weight.
        """
        parts = split_path(packed.path) if packed.kind == "expert" else None
        prefix = f"{packed.path}.weight" if parts is None else f"{parts[0]}.{parts[2]}"
        words, scale = self.tensor(f"{prefix}_packed"), self.tensor(f"{prefix}_scale")
        zero = None if packed.scheme.sym else self.tensor(f"{prefix}_zero_point")
        largest = LARGEST_WEIGHT / 2**packed.scheme.bits
        sizes = packed.out_features, packed.in_features
        if parts is None:
            check_finite(scale, f"{packed.path}.weight_scale", largest, negative=False)
            said = self.tensor(f"{packed.path}.weight_shape").tolist()
            if said != list(sizes):
                raise ValueError(
                    f"{packed.path}.weight_shape says {quote(said)}, expected {list(sizes)}: it is damaged."
                )
            return Weight(words, scale, zero, *sizes, packed.scheme.bits, packed.scheme.group_size, CHECKPOINT_LAYOUT)
        module = self.model.get_submodule(parts[0])
        assert isinstance(module, QAIGExperts)
        bits = [self.plan[expert_path(parts[0], e, parts[2])].bits for e in range(module.stack.num_experts)]
        stack = ExpertWeights(words, scale, zero, bits, len(bits), *sizes, packed.scheme.group_size, CHECKPOINT_LAYOUT)
        weight = next(stack.experts([int(parts[1])]))
        check_finite(weight.scale, f"{packed.path}: its scale", largest, negative=False)
        return weight

    def unpacked_tensors(self) -> Iterator[tuple[str, str, str]]:
        """Yields what is not packed, in the files' order: key in the files, name in the model, and file.

        Empty tensors are left out: the guard of a packed checkpoint is one.
        """
        name_of = loader_naming(self.model, convert=False)
        for file, handle in self._handles.items():
            for key in handle.keys():
                if not is_packed_name(key) and 0 not in handle.get_slice(key).get_shape():
                    yield key, name_of(key), file

    def read(self, key: str, file: str) -> Tensor:
        """Reads a tensor by its key in one of the files."""
        tensor: Tensor = self._handles[file].get_tensor(key)
        return tensor

    def bias(self, packed: PackedWeight) -> Tensor | None:
        """Reads the bias of a packed linear; None if it has none."""
        name = f"{packed.path}.bias"
        return self.tensor(name) if name in self.stored else None


def _read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json, and checks that it describes a model that is packed by this package.

    Raises:
        SettingError: it does not, or cannot be read.
    """
    if not folder.is_dir():
        raise SettingError(
            f"MODEL must be the folder of a quantized model, and there is no folder {quote(str(folder))}. Download a "
            "model of the Hub first: `hf download OWNER/NAME --local-dir FOLDER`."
        )
    try:
        config = read_json(folder / "config.json", LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise SettingError(f"{folder / 'config.json'} cannot be read: {reason(error)}.") from error
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method != QUANT_METHOD:
        found = "in full precision" if settings is None else f"quantized by {quote(method)}"
        raise SettingError(
            f"{folder} holds a model {found}, and only models that transformers-qaig packed are exported: run "
            "`transformers-qaig quantize` first."
        )
    if not isinstance(settings, dict) or not settings.get("plan"):
        raise SettingError(f"{folder / 'config.json'} holds no `plan`: the checkpoint is damaged.")
    return config


def _weight_files(folder: Path) -> list[str]:
    """Lists the safetensors files of a folder; those that its index names, if it has one."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.is_file():
        return [str(whole)]
    try:
        named = read_json(index, LARGEST_INDEX)["weight_map"].values()
        return [str(folder / name) for name in sorted({str(name) for name in named})]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        why = f"{pickled[0]} is a pickle, which is never read" if pickled else f"{index.name}: {reason(error)}"
        raise SettingError(f"{folder} holds no {SAFE_WEIGHTS_NAME} and no index of shards ({why}).") from error
