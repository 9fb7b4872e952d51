"""What a user may give as a setting, and what of it JSON holds."""

import collections
import enum
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from transformers_qaig import QAIGConfig
from transformers_qaig.config.plain import plain


class Bits(enum.IntEnum):
    EIGHT = 8


class Name(str, enum.Enum):
    RTN = "rtn"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"b", "a"}, ["a", "b"]),
        (frozenset({3, 2}), [2, 3]),
        ({"a": 1}.keys(), ["a"]),
        (range(2, 4), [2, 3]),
        (collections.deque(["a"]), ["a"]),
        (collections.UserDict(a=collections.OrderedDict(b=(1, 2))), {"a": {"b": [1, 2]}}),
        (types.MappingProxyType({"a": None}), {"a": None}),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([2, 3]), [2, 3]),
        (torch.tensor(2), 2),
        (Bits.EIGHT, 8),
        (Name.RTN, "rtn"),
        (np.str_("a"), "a"),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_has_a_plain_form_gets_it(given: object, expected: object) -> None:
    result = plain(given, "setting")
    assert result == expected
    assert type(result) is type(expected)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "given",
    [
        torch.float16,
        b"a",
        object(),
        float("nan"),
        float("inf"),
        1j,
        {1: "a"},
        {"a": {None: 1}},
        iter([1]),
        [[[[[[[[[1]]]]]]]]],
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(given: object) -> None:
    with pytest.raises(ValueError, match=r"setting"):
        plain(given, "setting")


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_not_convert": {"b", "a"}},
        {"modules_to_not_convert": ("b", "a")},
        {"overrides": collections.UserDict({"*.down_proj": np.int64(8)})},
        {"overrides": {"*.down_proj": types.MappingProxyType({"bits": Bits.EIGHT})}},
        {"recipe": collections.UserDict(name=Name.RTN, rounding="gptq")},
        {"budget": {"bits": np.float32(3.5), "candidates": {np.int64(4), np.int64(3)}}},
        {"budget": {"candidates": range(2, 5), "size": np.int64(10**9)}},
        {"budget": np.float32(3.5)},
        {"bits": torch.tensor(3), "sym": np.array(True)},
        {"group_size": np.int32(64), "seed": np.int64(1), "sym": np.bool_(True), "recipe": Name.RTN},
        {"plan": collections.UserDict(a=collections.UserDict(bits=np.int64(4), group_size=32, sym=False))},
    ],
)
def test_a_config_comes_back_from_json(settings: dict) -> None:
    config = QAIGConfig(**settings)
    text = config.to_json_string(use_diff=False)
    assert QAIGConfig(**json.loads(text)) == config


@pytest.mark.parametrize("settings", [{"overrides": {"*.q_proj": torch.float16}}, {"seed": 1j}])
def test_a_setting_that_cannot_be_saved_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        QAIGConfig(**settings)
