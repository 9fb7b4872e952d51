"""QAIGHfQuantizer: the hooks that Transformers calls while it loads and saves a model.

No other file depends on the order of Transformers' loading.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace as replaced
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer

from .config import QAIGConfig
from .config.devices import check_device
from .data.loader import load_inputs
from .execution.exclusions import Exclusions
from .execution.torch_state import default_torch_state
from .loading.arguments import loading_arguments
from .loading.checkpoint import check_headers, check_number
from .loading.dispatch import Placement, check_devices
from .loading.guard import guard_patterns, guard_tensors
from .loading.local_names import ignored_patterns, localise
from .loading.packed_modules import check_loaded, prepare, unpack_modules
from .loading.rotation_record import check_rotations, record_rotations
from .loading.shards import check_files
from .loading.skeleton import likely_plan, pack_modules, packed_skeleton
from .loading.source import Source
from .loading.text_config import mark_text_config, unmark_text_config, whole_settings
from .loading.tied_embeddings import install_tied_embeddings
from .loading.unused_tensors import UnusedTensor, find_unused, kept, read_unused, report_unused
from .plan.allocate import SchemeOption, allocate, describe, fused_sets, largest, reachable
from .plan.build import budget_in_bits, list_schemes, make_plan
from .plan.coverage import Coverage
from .saving.mark import check_one_save, save_mark
from .saving.processor_and_card import ProcessorToSave, attach_saving, detach_saving
from .saving.trial import try_saving
from .scheme import Plan, parse_plan, plan_to_dict
from .utils.files import require_writable
from .utils.finite import check_weights
from .utils.logging import get_logger

logger = get_logger(__name__)


class QAIGHfQuantizer(HfQuantizer):
    """Quantizes a model after its weights are loaded, or builds packed modules before packed weights are loaded.

    A model to be quantized is loaded on the CPU whatever `device_map` says. It is calibrated block by block on an
    accelerator if there is one, and placed on `device_map` once packed.
    """

    quantization_config: QAIGConfig

    def __init__(self, quantization_config: QAIGConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:  # the plan is written into it, and the caller may reuse theirs
            self.quantization_config = copy.deepcopy(quantization_config)
            self.quantization_config.validate()
        self.placement = Placement()
        self.source = Source("")
        self.unused: list[UnusedTensor] = []
        self.plan: Plan = {}
        self.coverage = Coverage()
        self.samples: Sequence[dict[str, Tensor]] = []
        self.answers: Sequence[Tensor] = []
        self.exclusions = Exclusions()
        self.options: dict[str, list[SchemeOption]] = {}
        self.budget = 0.0
        self.dtypes: dict[str, torch.dtype] = {}

    # -- before the model exists

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises `RuntimeError` in inference mode, and `ValueError` for a calibration device that does not exist."""
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

    # -- on the meta model, before the first weight is read

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        given = loading_arguments()
        download = given.get("download_kwargs") or {}
        self.source = Source.of(model.name_or_path or "", checkpoint_files, bool(download.get("local_files_only")))
        if self.pre_quantized:
            self._build_packed(model, checkpoint_files)
            return
        config = self.quantization_config
        run = config.calibration
        if run.work_dir is not None:
            require_writable(Path(run.work_dir), "work_dir")
        if config.plan is not None and config.budget is not None:
            raise ValueError("`plan` says every width already: leave out `budget`.")
        if config.budget is not None:
            self.options, self.coverage = list_schemes(model, config)
            self.coverage.require(run.min_coverage)
            self.unused = report_unused(model, find_unused(model, checkpoint_files), self.coverage)
            least_and_most = reachable(self.options, self._fused())
            self.budget = budget_in_bits(config, self.coverage, least_and_most)
            if self.budget >= least_and_most[1]:
                self._take_largest()
        else:
            self.plan, self.coverage = make_plan(model, config)
            self.coverage.require(run.min_coverage)
            self.unused = report_unused(model, find_unused(model, checkpoint_files), self.coverage)
        self._rehearse(model, checkpoint_files)
        access = copy.deepcopy(config)  # the token for the weights is used for the processor too, and not kept
        access.calibration = run = replaced(
            run,
            token=download.get("token") if run.token is None else run.token,
            trust_remote_code=run.trust_remote_code or given.get("trust_remote_code") is True,
        )
        if config.recipe.calibrates or self.options:
            self.samples, self.answers = load_inputs(model, access, self.source, self.exclusions)
        else:
            _tell_unread(config)
            if run.processor is None:
                self.source.fetch(run.token)

    def _take_largest(self) -> None:
        """Leaves no choice where the budget has room for every weight's largest option."""
        options = largest(self.options, self._fused())
        self.plan = {**{path: option.scheme for path, (option,) in options.items()}, **self.coverage.outside}
        self.coverage.stored_bits = sum(option.size for (option,) in options.values())
        self.options = {}

    def _rehearse(self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None) -> None:
        """Places and saves the packed model without weights, so that errors are raised before the calibration."""
        if self.options:
            self.plan = {**likely_plan(self.options, self.budget, self._fused()), **self.coverage.outside}
        settings = copy.deepcopy(self.quantization_config)
        settings.plan = plan_to_dict(self.plan)
        skeleton = packed_skeleton(model, self.plan)
        self.placement.plan(skeleton)
        tensors, _ = self.get_state_dict_and_metadata(skeleton)
        try_saving(model, skeleton, tensors or {}, settings, checkpoint_files)

    def _fused(self) -> list[list[str]]:
        budget = self.quantization_config.budget
        return fused_sets(self.options) if budget is not None and budget.fuse else []

    def _build_packed(self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None) -> None:
        files = checkpoint_files or ()
        check_files(files, model.name_or_path or "")
        if not self.quantization_config.plan:
            settings = QAIGConfig.from_dict(whole_settings(files))
            assert isinstance(settings, QAIGConfig)
            self.quantization_config = settings
        config = self.quantization_config
        check_number(config.plan or {}, files)
        local = localise(parse_plan(config.plan, config.activation_bits), model, files)
        check_rotations(local.plan, model, files)
        unexpected = guard_patterns(local) | ignored_patterns(model, local.elsewhere)
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *unexpected}
        self.plan, config.plan = local.plan, plan_to_dict(local.plan)
        pack_modules(model, self.plan)
        if files:
            check_one_save(files)
            # The loader casts to what it finds: scales keep their dtype whatever `dtype` the model is loaded in.
            for name, stored in check_headers(model, self.plan, files).items():
                parameter = model.get_parameter(name)
                parameter.data = parameter.data.to(stored)
            self.unused = kept(model, find_unused(model, files, guard_patterns(local)))
            self.dtypes = {name: t.dtype for name, t in chain(model.named_parameters(), model.named_buffers())}

    # -- after the weights are loaded

    @default_torch_state()
    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self.pre_quantized:
            check_loaded(model, self.plan, self.dtypes)
            mark_text_config(model.config)
            attach_saving(model, ProcessorToSave(None, self.source))
            prepare(model, self.plan)
            return
        from .calibration.pipeline import (
            calibrate,  # here, because all that needs greenlet comes with it, and loading does not
        )

        check_weights(model)
        try:
            if self.options:
                self._allocate(model)
            report = calibrate(
                model,
                self.plan,
                self.coverage,
                self.samples,
                self.quantization_config,
                self.answers,
                self.exclusions,
            )
        finally:
            self.samples, self.answers, self.options = [], [], {}
        install_tied_embeddings(model, report.plan)
        self.plan, self.quantization_config.plan = report.plan, plan_to_dict(report.plan)
        model.config.quantization_config = self.quantization_config
        mark_text_config(model.config)
        model.qaig_report = report  # type: ignore[assignment]
        attach_saving(model, self._processor(), base_model_id=model.name_or_path)
        logger.info("%s", report)
        self.placement.place(model)
        prepare(model, self.plan)

    def _processor(self) -> ProcessorToSave:
        """Returns the processor that calibration used, or would have used."""
        given = self.quantization_config.calibration.processor
        if isinstance(given, (str, os.PathLike)):
            return ProcessorToSave(None, self.source.reach(given))
        return ProcessorToSave(given, self.source)

    def _allocate(self, model: PreTrainedModel) -> None:
        """Chooses the plan under the budget, by what each width costs the answers."""
        from .calibration.bit_costs import measure_costs  # here for the same reason as `calibrate`

        self.options = measure_costs(
            model, self.options, self.samples, self.answers, self.quantization_config, self.exclusions
        )
        fused = self._fused()
        allocation = allocate(self.options, self.budget, fused)
        logger.info("%s", describe(allocation, self.options, self.budget, fused))
        self.plan = {**allocation.schemes, **self.coverage.outside}
        self.coverage.stored_bits = allocation.size

    # -- back to full precision, and saving

    @default_torch_state()
    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        # A string is what the config holds once it was saved.
        wanted: torch.dtype | None = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
        unpack_modules(model, self.plan, wanted)
        unmark_text_config(model.config)
        detach_saving(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Returns the tensors and the files' metadata that `save_pretrained` writes, in the checkpoint layout."""
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # only the adapter is saved
        # A tied head and its embeddings give two copies of what they hold in the kernels' order.
        tensors = {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
        tensors |= read_unused(self.unused) | guard_tensors(self.plan, model.dtype)
        return tensors, record_rotations(self.plan) | save_mark(tensors)

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


def _tell_unread(config: QAIGConfig) -> None:
    """Warns of settings for calibration data that the recipe does not read."""
    settings = {"dataset": config.dataset, "columns": config.calibration.columns}
    given = [name for name, value in settings.items() if value is not None]
    if given:
        logger.warning(
            "%s ignored: `recipe=%r` reads no data. Leave it out, or choose a recipe that calibrates, such as "
            "'default'.", " and ".join(f"`{name}`" for name in given), config.recipe.name,
        )  # fmt: skip
