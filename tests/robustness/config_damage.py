"""Ways to damage what config.json says of the quantization, at random but by a seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    -1, 0, 1, 2, 3, 5, 7, 8, 9, 16, 31, 32, 33, 48, 64, 96, 128, 2**31, 2**53, 2**63, -(2**63), 10**40, 10**400,
    10**4000, 0.0, -0.5, 3.5, 1e300, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
STRINGS = (
    "", "4", "x" * 50_000, "1" * 50_000 + "x", "/dev/zero", "../..", "\0", "é\u202e", "*a" * 40, "(a+)+$" * 20, "None",
    "bfloat16", "3.5GiB", "default", "gptq",
)  # fmt: skip
FOR_ONE_RUN = (
    "calibration",
    "processor",
    "dataset",
    "token",
    "trust_remote_code",
    "work_dir",
    "offload_folder",
    "max_memory",
)


@dataclass
class Damage:
    """
    What was done to a checkpoint.

    Attributes:
        text: what, for people.
        other_value: whether it is only another valid number: another answer is then right.
        exact: it must be noticed, whatever the model answers.
    """

    text: str
    other_value: bool = False
    exact: bool = False


def change_settings(folder: Path, random: Random) -> Damage:
    def change(settings: dict[str, Any]) -> Damage:
        way = random.choice(("set", "delete", "add", "rename"))
        if way == "add":
            name = random.choice(FOR_ONE_RUN + STRINGS + ("self", "kwargs", "target_bits ", "Bits"))
            settings[name] = value = any_value(random)
            return Damage(f"config: add {short(name)}={short(value)}")
        where, key = random.choice([(settings, key) for key in settings if key != "plan"] + _nested(settings))
        if way == "set":
            return _set(where, key, random)
        value = where.pop(key)
        if way == "rename":
            where[f"{key}_"] = value
        return Damage(f"config: {way} {short(key)}", other_value=key == "activation_bits")

    return _edited(folder, change)


def change_plan(folder: Path, random: Random) -> Damage:
    def change(settings: dict[str, Any]) -> Damage:
        plan = settings["plan"]
        one, other = random.sample(sorted(plan), 2)
        way = random.choice(("set", "set", "set", "delete", "swap", "rename", "copy", "rotate", "whole"))
        if way == "set":
            return _set(plan[one], random.choice(sorted(plan[one])), random, f" of {one}")
        if way == "delete":
            del plan[one]
        elif way == "swap":
            plan[one], plan[other] = plan[other], plan[one]
        elif way == "rename":
            plan[random.choice((f"{one}x", one.replace("0", "7"), other, "", "model", "lm_head", one + ".weight"))] = (
                plan.pop(one)
            )
        elif way == "copy":
            plan[random.choice((f"model.{one}", one.removeprefix("model."), "x" * 10_000))] = plan[one]
        elif way == "rotate":
            plan[one]["rotation"] = {"block": random.choice((16, 32, 64, 48)), "seed": random.choice((0, 1, 2**63 - 1))}
        else:
            settings["plan"] = value = any_value(random)
            return Damage(f"plan: {short(value)}")
        return Damage(f"plan: {way} {one}")

    return _edited(folder, change)


def _set(where: Any, key: Any, random: Random, of: str = "") -> Damage:
    where[key] = value = any_value(random)
    return Damage(f"config: {key}{of} = {short(value)}", other_value=key == "activation_bits")


def _nested(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [
        (value, key) for name, value in settings.items() if isinstance(value, dict) and name != "plan" for key in value
    ]


def any_value(random: Random) -> Any:
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 5:
        return random.choice(STRINGS)
    if kind == 5:
        return random.choice((None, True, False, [], {}, [{}], {"": {}}, [[]], [4, "4"], {"bits": 4}, ["*"] * 2000))
    if kind == 6:
        deep: Any = 1
        for _ in range(random.choice((3, 100, 400))):
            deep = [deep] if random.random() < 0.5 else {"x": deep}
        return deep
    return {"block": random.choice(NUMBERS), "seed": random.choice(NUMBERS)}


def _edited(folder: Path, change: Callable[[dict[str, Any]], Damage]) -> Damage:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    done = change(config["quantization_config"])
    file.write_text(json.dumps(config))
    return done


def short(value: object) -> str:
    text = str(type(value)) if isinstance(value, int) and abs(value) > 2**70 else repr(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)})"
