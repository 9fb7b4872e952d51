"""`PackedLoad`: loads one packed model, from the checks of its files to packed modules on their devices."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..config import QAIGConfig
from ..formats.scheme import Plan
from ..loading.packed_checkpoint import PackedCheckpoint, open_packed
from ..loading.packed_modules import check_loaded, to_kernel_layout
from ..loading.source import Source
from ..loading.text_config import mark_text_config
from ..loading.unused_tensors import UnusedTensor
from .saving.processor_and_card import ProcessorToSave, attach_saving


class PackedLoad:
    """One packed model's way from its files: `prepare` before its weights are read, `finish` after.

    Args:
        config: from config.json.
        source: where the weights come from.

    Attributes:
        converted: None, as no weight is converted.
    """

    converted = None

    def __init__(self, config: QAIGConfig, source: Source):
        self.source, self._checkpoint = source, PackedCheckpoint(config, {})

    @property
    def config(self) -> QAIGConfig:
        """Its settings, with the plan in the names of this model once it is prepared."""
        return self._checkpoint.config

    @property
    def plan(self) -> Plan:
        """Weight path to scheme, in the names of this model."""
        return self._checkpoint.plan

    @property
    def unused(self) -> list[UnusedTensor]:
        """Stored tensors that the model has no place for, to be saved again."""
        return self._checkpoint.unused

    def prepare(self, model: PreTrainedModel, checkpoint_files: Sequence[str]) -> None:
        """Puts packed modules into `model`, on the meta device. See [`open_packed`]."""
        self._checkpoint = open_packed(model, checkpoint_files, self.config)

    def finish(self, model: PreTrainedModel) -> None:
        """Checks what was loaded, and converts it to the layout of its device's kernels.

        Raises:
            ValueError: naming a tensor that is damaged.
        """
        check_loaded(model, self.plan, self._checkpoint.dtypes)
        attach_saving(model, ProcessorToSave(None, self.source))
        mark_text_config(model.config)
        to_kernel_layout(model)
