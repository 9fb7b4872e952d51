"""Ways to damage the files of a checkpoint, at random but by a seed: headers, tensors, shards, index, bytes."""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.config_damage import Damage, any_value, change_plan, change_settings, short
from tests.robustness.folder_damage import change_config, change_folder

DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8", "U32", "BOOL", "C64", "Q4", "")


SAME_SIZE = {
    **dict.fromkeys(("F64", "I64", "U64"), ("F64", "I64", "U64", "C64")),
    **dict.fromkeys(("F32", "I32"), ("F32", "I32", "U32")),
    **dict.fromkeys(("F16", "BF16"), ("F16", "BF16", "I16", "U16")),
}


def damage(folder: Path, random: Random) -> Damage:
    """Damages the checkpoint in `folder` in one of the ways that its files allow."""
    kinds: list[Callable[[Path, Random], Damage]] = [
        change_settings,
        change_settings,
        change_plan,
        _header,
        _header,
        _payload,
        _bytes,
        change_config,
        change_folder,
    ]
    if (folder / INDEX).exists():
        kinds += [_index, _index, _shards, _shards]
    return random.choice(kinds)(folder, random)


# -- the header of a safetensors file


def _header(folder: Path, random: Random) -> Damage:
    file = random.choice(sorted(folder.glob("*.safetensors")))
    header, data = read(file)
    tensors = sorted(key for key in header if key != "__metadata__")
    one, other = random.choice(tensors), random.choice(tensors)
    entry = header[one]
    way = random.choice(
        ("name", "delete", "dtype", "kind", "shape", "offsets", "swap", "metadata", "copy", "type", "more")
    )
    other_value = False
    if way == "name":
        new = random.choice(
            (
                f"{one}_", one[1:], one.replace("1", "0"), one.replace("model", "mode"), "x" * 10_000, f"model.{one}",
                one.replace("e", "\u0435"), f"{one}\0", f"{one}\u200b", f".{one}", one.upper(), "(", "^.*$", "\\1",
            )
        )  # fmt: skip
        header[new] = header.pop(one)
    elif way == "delete":
        del header[one]
    elif way == "dtype":
        old, entry["dtype"] = entry["dtype"], random.choice(DTYPES)
        other_value = {old, entry["dtype"]} <= {"F16", "BF16"} and not one.endswith("weight_scale")
    elif way == "kind":  # another type of the same size
        old = entry["dtype"]
        entry["dtype"] = random.choice([dtype for dtype in SAME_SIZE[old] if dtype != old])
    elif way == "more":
        name = f"{one.rpartition('.')[0]}.{random.choice(('weight', 'bias', 'weight_zero_point', 'weight_scale', 'x'))}"
        header.setdefault(name, {**entry, "shape": [0], "data_offsets": [len(data), len(data)]})
    elif way == "shape":
        shape = entry["shape"]
        entry["shape"] = random.choice(
            (
                shape[::-1],
                [*shape, 1],
                [1, *shape],
                shape[:-1],
                [2**40],
                [0],
                [-1],
                ["4"],
                [2**70],
                [math.prod(shape)],
                [1, math.prod(shape)],
            )
        )
    elif way == "offsets":
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            (
                [end, begin],
                [begin + 4, end + 4],
                [begin, end + 4],
                [begin, end - 4],
                [0, 2**63],
                [-4, end],
                [begin],
                "0",
            )
        )
    elif way == "swap":
        header[one], header[other] = header[other], header[one]
        other_value = all(header[one][key] == header[other][key] for key in ("shape", "dtype"))
    elif way == "metadata":
        text = header.get("__metadata__", {})
        key = random.choice(sorted(text))
        text[key] = random.choice(("{}", "[]", "x", '{"a": 1}', "[" * 1000, text[key][:-2]))
        header["__metadata__"] = random.choice((text, text, text, {}, [], {"format": 1}))
    elif way == "copy":
        header[random.choice((f"{one}2", f"model.{one}"))] = dict(entry)
    else:
        header[one] = random.choice((None, [], "x", 1, {**entry, "extra": 1}))
    write(file, header, data)
    return Damage(f"header of {file.name}: {way} {one}", other_value)


def read(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and all that follows it."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(file: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


# -- the tensors


def _payload(folder: Path, random: Random) -> Damage:
    file = random.choice(sorted(folder.glob("*.safetensors")))
    header, data = read(file)
    endings = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight", "bias")
    wanted = random.choice(endings)
    named = [key for key in sorted(header) if key.rpartition(".")[2] == wanted and header[key]["shape"] != [0]]
    if not named:
        named = [key for key in sorted(header) if key != "__metadata__" and header[key]["shape"] != [0]]
    one = random.choice(named)
    begin, end = header[one]["data_offsets"]
    content = bytearray(data)
    floats = {"F32": ("<f", 4), "F16": ("<e", 2), "BF16": ("<H", 2)}.get(header[one]["dtype"])
    exact = False
    if floats and random.random() < 0.2:
        for at in range(begin + floats[1] - 1, end, floats[1]):
            content[at] ^= 0x80
        exact = one.endswith("weight_scale")
        text = "signs of"
    elif floats and random.random() < 0.6:
        form, size = floats
        bad = random.choice((float("nan"), float("inf"), float("-inf")))
        number = struct.pack("<f", bad)[2:] if form == "<H" else struct.pack(form, bad)
        at = begin + random.randrange((end - begin) // size) * size
        content[at : at + size] = number
        exact = True
        text = f"{bad} in"
    else:
        for _ in range(random.choice((1, 1, 4, 100))):
            content[random.randrange(begin, end)] ^= random.choice((1, 0x80, 0xFF, random.randrange(1, 256)))
        text = "bits of"
        exact = one.endswith("weight_shape") and bytes(content) != data
    write(file, header, bytes(content))
    return Damage(f"payload: {text} {one}", other_value=True, exact=exact)


# -- the files as bytes


def _bytes(folder: Path, random: Random) -> Damage:
    file = random.choice(sorted(folder.glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    ways = ("cut", "append", "header byte", "header byte", "size", "empty", "cut in the header", "a key twice")
    way = random.choice(ways)
    if way == "cut":
        del content[random.randrange(8 + size, len(content)) :]
    elif way == "cut in the header":
        del content[random.randrange(8 + size) :]
    elif way == "append":
        content += random.randbytes(random.choice((1, 8, 4096)))
    elif way == "a key twice":
        header, _ = read(file)
        one, other = (random.choice(sorted(header)) for _ in range(2))
        text = content[8 : 8 + size].rstrip()[:-1] + f", {json.dumps(one)}: {json.dumps(header[other])}}}".encode()
        text += b" " * (-len(text) % 8)
        content = bytearray(struct.pack("<Q", len(text))) + text + content[8 + size :]
    elif way == "header byte":
        content[random.randrange(8, 8 + size)] = random.choice((0, 32, 34, 48, 49, 70, 73, 125, random.randrange(256)))
    elif way == "size":
        content[:8] = struct.pack(
            "<Q", random.choice((0, 1, size - 1, size + 1, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1))
        )
    else:
        content.clear()
    file.write_bytes(content)
    # One letter of a header may exchange two names, or two kinds of 16-bit numbers, and make another valid file.
    return Damage(f"bytes of {file.name}: {way}", other_value=way == "header byte")


# -- shards and their index

INDEX = "model.safetensors.index.json"


def _index(folder: Path, random: Random) -> Damage:
    file = folder / INDEX
    index = json.loads(file.read_text())
    where = index["weight_map"]
    one, other = random.sample(sorted(where), 2)
    way = random.choice(("point", "point", "point", "delete", "add", "metadata", "whole", "cut", "all outside"))
    text = f"index: {way} {one}"
    if way == "point":
        os.mkfifo(folder / "fifo.safetensors")
        outside = folder.parent / "outside.safetensors"
        where[one] = random.choice(
            (
                where[other], "none.safetensors", "../outside.safetensors", str(outside), "/dev/zero", "/etc/passwd",
                "fifo.safetensors", "config.json", ".", "", 3, None, ["x"], "\0", "x" * 5000,
            )
        )  # fmt: skip
        text += f" at {short(where[one])}"
    elif way == "all outside":
        where.update({key: f"../{folder.name}-none/{name}" for key, name in where.items()})
    elif way == "delete":
        del where[one]
    elif way == "add":
        where[random.choice((f"{one}2", f"model.{one}"))] = random.choice((where[one], "none.safetensors"))
    elif way == "metadata":
        index["metadata"] = any_value(random)
    elif way == "whole":
        index["weight_map"] = any_value(random)
    content = json.dumps(index)
    file.write_text(content[: random.randrange(len(content))] if way == "cut" else content)
    return Damage(text)


def _shards(folder: Path, random: Random) -> Damage:
    files = sorted(folder.glob("*.safetensors"))
    one, other = random.sample(files, 2)
    way = random.choice(("missing", "swap", "twice", "twice", "copy", "fifo", "folder"))
    if way == "missing":
        one.unlink()
    elif way == "swap":
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    elif way == "copy":
        shutil.copy(other, one)
    elif way == "twice":
        (header, data), (more, added) = read(one), read(other)
        key = random.choice(sorted(more.keys() - {"__metadata__"}))
        begin, end = more[key]["data_offsets"]
        content = bytearray(added[begin:end])
        if content:
            content[random.randrange(len(content))] ^= 1
        name = key if random.random() < 0.5 else f"model.{key}"
        header[name] = {**more[key], "data_offsets": [len(data), len(data) + len(content)]}
        write(one, header, data + content)
    else:
        one.unlink()
        os.mkfifo(one) if way == "fifo" else one.mkdir()
    return Damage(f"shards: {way} {one.name}, {other.name}")
