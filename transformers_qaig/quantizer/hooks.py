"""QAIGHfQuantizer: the hooks that Transformers calls while it loads and saves a model.

No other file depends on the order of Transformers' loading.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightTransform
from transformers.quantizers import HfQuantizer

from ..config import QAIGConfig
from ..config.devices import check_device
from ..execution.torch_state import default_torch_state
from ..loading.arguments import loading_arguments
from ..loading.conversions import sparing_packed
from ..loading.dispatch import Placement, check_devices
from ..loading.full_precision import ConvertedWeights
from ..loading.packed_modules import unpack_modules
from ..loading.parallel import refuse_tensor_parallel
from ..loading.shards import check_index
from ..loading.source import Source
from ..loading.text_config import unmark_text_config
from .packed_load import PackedLoad
from .run import QuantizationRun
from .saving.processor_and_card import detach_saving
from .saving.state_dict import checkpoint_tensors


class QAIGHfQuantizer(HfQuantizer):
    """Quantizes a model after its weights are loaded, or builds packed modules before packed weights are loaded.

    A model to be quantized is loaded on the CPU whatever `device_map` says. It is calibrated block by block on an
    accelerator if there is one, and placed on `device_map` once packed.

    Attributes:
        packed_by: what quantizes the model, or loads it packed.
        placement: where the packed model goes.
    """

    quantization_config: QAIGConfig

    def __init__(self, quantization_config: QAIGConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:  # the plan is written into it, and the caller may reuse theirs
            self.quantization_config = copy.deepcopy(quantization_config)
            self.quantization_config.validate()
        self.placement = Placement()
        self.packed_by: QuantizationRun | PackedLoad = PackedLoad(self.quantization_config, Source(""))
        self._dtype: torch.dtype | None = None

    # -- before the model exists

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Checks what is asked of `from_pretrained`.

        Raises:
            RuntimeError: quantization in inference mode.
            ValueError: a calibration device that does not exist, or a damaged index of the model's shards.
            NotImplementedError: tensor parallelism.
        """
        refuse_tensor_parallel()
        check_index(loading_arguments(), with_files=not self.pre_quantized)
        if not self.pre_quantized and torch.is_inference_mode_enabled():
            raise RuntimeError(
                "Quantization takes gradients of activations, which torch.inference_mode() forbids: call "
                "from_pretrained outside of it (torch.no_grad() is fine)."
            )
        device = self.quantization_config.calibration.device
        if not self.pre_quantized and device is not None:
            check_device(device, "CalibrationConfig(device=...)")

    def update_device_map(self, device_map: Any) -> Any:
        """Checks `device_map`, and returns the map to load with: the CPU for a model to be quantized.

        Such a model is placed on `device_map` once it is packed.
        """
        if self.pre_quantized:
            check_devices(device_map)
            return device_map
        self.placement = Placement.requested(device_map, self.quantization_config)
        return {"": "cpu"}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype in which weights are loaded, as it is."""
        self._dtype = dtype
        return dtype

    # -- on the meta model, before the first weight is read

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        files, download = checkpoint_files or (), loading_arguments().get("download_kwargs") or {}
        source = Source.of(model.name_or_path or "", checkpoint_files, bool(download.get("local_files_only")))
        if self.pre_quantized:
            self.packed_by = PackedLoad(self.quantization_config, source)
        else:
            config = self.quantization_config.with_default_budget()
            self.packed_by = QuantizationRun(config, self.placement, source, self._dtype)
        self.packed_by.prepare(model, files)
        self.quantization_config = self.packed_by.config

    # -- while they are read, one after the other

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether a weight of a model to be quantized may have to go to a file: see [`ConvertedWeights`]."""
        return self.packed_by.converted is not None and param_name in self.packed_by.converted

    def get_quantize_ops(self) -> ConvertedWeights:
        """Returns what Transformers calls with each of these weights."""
        assert self.packed_by.converted is not None
        return self.packed_by.converted

    # -- after the weights are loaded

    @default_torch_state()
    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.packed_by.finish(model)

    # -- back to full precision, and saving

    @default_torch_state()
    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        # A string is what the config holds once it was saved.
        wanted: torch.dtype | None = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
        unpack_modules(model, wanted)
        unmark_text_config(model.config)
        detach_saving(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Returns the tensors and the files' metadata that `save_pretrained` writes, in the checkpoint layout."""
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # only the adapter is saved
        return checkpoint_tensors(model, self.packed_by.plan, self.packed_by.unused)

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], *model: Any
    ) -> list[WeightTransform]:
        """Keeps the model's conversions from merging or splitting packed tensors, on loading and on saving."""
        return sparing_packed(super().update_weight_conversions(weight_conversions, *model))

    def is_serializable(self) -> bool:
        """Returns True: packed models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters can be trained on top of packed weights."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: packed models can be compiled."""
        return True
