"""`ServedConfig`: the methods that every engine calls, which return the same in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...config import QUANT_METHOD, QAIGConfig
from ...formats.scheme import Plan, parse_plan


class ServedConfig:
    """The answers that depend on no engine. An engine's own class of configurations is the second base."""

    @staticmethod
    def read_plan(config: Mapping[str, Any]) -> Plan:
        """Returns how config.json says that each packed weight is stored.

        Raises:
            ValueError: the mapping is damaged.
        """
        settings = QAIGConfig.from_dict(dict(config))
        assert isinstance(settings, QAIGConfig)
        return parse_plan(config.get("plan"), settings.activation_bits)

    def get_name(self) -> str:
        """Returns the method's name."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Returns the dtypes of a model that can be served."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Returns the oldest CUDA capability, times ten."""
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Returns no names: everything is in config.json."""
        return []
