"""The Python side of `csrc/cuda` (arguments, geometry) against the headers, compiled by a C++ compiler."""

import ctypes
import itertools
import subprocess
from pathlib import Path

import pytest
import torch

from transformers_qaig.formats import cuda_layout
from transformers_qaig.kernels import compiler
from transformers_qaig.kernels.cuda import interface

CSRC = Path(__file__).parents[3] / "csrc"
STRUCTURES = {
    "QaigLayer": interface.Layer,
    "QaigMatmul": interface.Matmul,
    "QaigExperts": interface.Experts,
    "QaigDequantize": interface.Dequantize,
    "QaigQuantizeActivations": interface.QuantizeActivations,
    "QaigGptqColumns": interface.GptqColumns,
}
SHAPES = [
    interface.Shape.of(n, k, g, bits)
    for (n, k, g), bits in itertools.product(
        [(1, 1, -1), (64, 64, 32), (65, 96, 32), (129, 72, 36), (4096, 11008, 128), (100, 1000, 8), (18944, 3584, 64)],
        (2, 3, 4, 8),
    )
]

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="needs a C++ compiler")


def run(tmp_path: Path, body: str) -> list[list[int]]:
    """What a program prints that includes the header and has `body` as its main function: lines of integers."""
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(
        "#include <cstddef>\n#include <cstdio>\n#include <initializer_list>\n"
        '#include "cuda/device/schedule.cuh"\n#include "cuda/tuning.h"\n'
        "using namespace qaig::cuda;\n"
        'template <class... T> void say(T... v) { ((printf("%lld ", static_cast<long long>(v))), ...); puts(""); }\n'
        f"int main() {{\n{body}\n}}\n"
    )
    command = compiler.find_compiler().command
    subprocess.run([*command, "-std=c++17", f"-I{CSRC}", str(source), "-o", str(program)], check=True)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return [[int(word) for word in line.split()] for line in said.splitlines()]


def test_structures(tmp_path):
    body, expected = [], []
    for name, structure in STRUCTURES.items():
        fields = [field for field, *_ in structure._fields_]
        body.append(f"say(sizeof({name}), alignof({name}));")
        expected.append([ctypes.sizeof(structure), ctypes.alignment(structure)])
        for field in fields:
            body.append(f"say(offsetof({name}, {field}), sizeof({name}::{field}));")
            expected.append([getattr(structure, field).offset, getattr(structure, field).size])
        # All fields of the header are named above: together with padding they fill it.
        assert set(fields) == declared(name)
    assert run(tmp_path, "\n".join(body)) == expected


def declared(structure: str) -> set[str]:
    """Names of the members in the header's own text."""
    text = (CSRC / "cuda" / "arguments.h").read_text()
    body = text.split(f"struct {structure} {{")[1].split("};")[0]
    names: set[str] = set()
    for line in body.splitlines():
        declaration = line.split("//")[0].strip().rstrip(";")
        if declaration:
            first, *others = declaration.split(", ")
            names |= {word.split("[")[0] for word in (first.split()[-1], *others)}
    return names


def test_quotients(tmp_path):
    """Units by the units of a group, of groups of one unit to one group of all channels, and around multiples."""
    divisors = [1, 2, 3, 4, 5, 7, 12, 31, 32, 96, 112, 592, 1000, 4095, 4096, 4097, 65537, 2**19 - 1, 2**19]
    body = (
        f"for (int d : {{{', '.join(map(str, divisors))}}}) {{"
        " long long wrong = 0; const FastDivisor q = fast_divisor(d); const int most = d == 1 ? 1 << 24 : 1 << 20;"
        " for (int n = 0; n < most; n += n < 5000 ? 1 : 37) wrong += q.divide(n) != n / d;"
        " for (int n = d; n < most; n += d) wrong += (q.divide(n) != n / d) + (q.divide(n - 1) != (n - 1) / d);"
        " say(wrong); }"
    )
    assert run(tmp_path, body) == [[0]] * len(divisors)


def test_constants(tmp_path):
    body = (
        "say(QAIG_F32, QAIG_F16, QAIG_BF16, QAIG_MAX_LAYERS, QAIG_MAX_GEMV_ROWS, kGemvThreads, kDequantizeThreads,"
        " kQuantizeThreads, kGptqThreads, kMaxGptqColumns, kMixedBits, kBlockRows, kTileSlots, kUnitSlots, kGemmWarps,"
        " kGemmThreads, kGemmRowBlocks, kGemmColumns, kGemmBlocksPerProcessor, kMinGemmSteps, kMaxSteps,"
        " kGemmI8Stages, kMaxGridY);"
    )
    types = [interface.TYPES[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert run(tmp_path, body) == [
        [
            *types,
            interface.MAX_LAYERS,
            interface.MAX_GEMV_ROWS,
            interface.GEMV_THREADS,
            interface.DEQUANTIZE_THREADS,
            interface.QUANTIZE_THREADS,
            interface.GPTQ_THREADS,
            interface.MAX_GPTQ_COLUMNS,
            interface.MIXED_BITS,
            interface.BLOCK_ROWS,
            interface.TILE_SLOTS,
            interface.UNIT_SLOTS,
            interface.GEMM_WARPS,
            interface.GEMM_THREADS,
            interface.GEMM_ROW_BLOCKS,
            interface.GEMM_COLUMNS,
            interface.GEMM_BLOCKS_PER_PROCESSOR,
            interface.MIN_GEMM_STEPS,
            interface.MAX_STEPS,
            interface.GEMM_I8_STAGES,
            interface.MAX_GRID_Y,
        ]
    ]


def test_rules(tmp_path):
    body, expected = [], []
    for s in SHAPES:
        arguments = f"{s.out_features}, {s.in_features}, {s.group_size}, {s.bits}"
        stop = s.out_features
        start = stop // 3
        body.append(
            f"{{ const Shape s = {{{arguments}}};"
            " say(s.row_blocks(), s.groups(), s.tiles(), s.slots(), s.work_items(), s.in_channel_order(),"
            f" dequantize_grid_x(s), dequantize_grid_y({start}, {stop}),"
            " gemv_grid(s.work_items(), 132, 8), gemv_grid(s.work_items(), 1, 16),"
            " gemm_output_tiles(s, 65), gemm_k_steps(s, 64),"
            " gemm_grid(gemm_k_steps(s, 200), 132), gemm_grid(gemm_k_steps(s, 200), 1)); }"
        )
        numbers = [s.row_blocks, s.groups, s.tiles, s.slots, s.work_items, int(s.in_channel_order)]
        numbers += interface.dequantize_grid(s, start, stop)
        numbers += [interface.gemv_grid(s.work_items, *by) for by in ((132, 8), (1, 16))]
        numbers += [interface.gemm_output_tiles(s, 65), interface.gemm_k_steps(s, 64)]
        numbers += [interface.gemm_grid(interface.gemm_k_steps(s, 200), count) for count in (132, 1)]
        expected.append(numbers)
    for bits, rows in itertools.product((interface.MIXED_BITS, 2, 3, 4, 8), (1, 8, 9, 16)):
        body.append(
            f"say(gemv_columns({rows}), gemv_shared_bytes({bits}, gemv_columns({rows})),"
            f" gemv_workspace_bytes(7, gemv_columns({rows})));"
        )
        columns = interface.gemv_columns(rows)
        shared = interface.gemv_shared_bytes(bits, columns)
        assert shared <= 48 << 10  # more needs an attribute to be set
        expected.append([columns, shared, interface.gemv_workspace_bytes(7, columns)])
    for bits in (2, 3, 4, 8):
        body.append(
            f"say(gemm_f16_shared_bytes({bits}), gemm_i8_shared_bytes({bits}),"
            " gemm_workspace_bytes(7), gemm_semaphores(5));"
        )
        shared = interface.gemm_f16_shared_bytes(bits)
        integer = interface.gemm_i8_shared_bytes(bits)
        assert max(shared, integer) <= 48 << 10
        expected.append([shared, integer, interface.gemm_workspace_bytes(7), interface.gemm_semaphores(5)])
    assert run(tmp_path, "\n".join(body)) == expected


def test_launches_of_many_rows(tmp_path):
    """No grid is higher than a GPU's may be, wherever the first row lies in its block, nor lower than needed."""
    most = 1 << 24
    for start in (0, 1, 63, 64, 70):
        stops = [start]
        while stops[-1] < most:
            stops.append(interface.dequantize_stop(stops[-1], most))
        heights = [
            interface.dequantize_grid(interface.Shape(most, 1, 1, 2), *part)[1] for part in itertools.pairwise(stops)
        ]
        assert heights[:-1] == [65_535] * (len(heights) - 1)
        assert 0 < heights[-1] <= 65_535
        body = "\n".join(f"say(dequantize_stop({first}, {most}));" for first in stops[:-1])
        assert run(tmp_path, body) == [[stop] for stop in stops[1:]]


@pytest.mark.parametrize("s", SHAPES[::5], ids=str)
def test_shapes_are_those_of_the_order(s):
    words, rows = cuda_layout.shapes(s.out_features, s.in_features, s.bits, s.group_size)
    assert words == (s.row_blocks, s.tiles, s.bits, 32, 4)
    assert rows == (s.row_blocks, s.groups, interface.BLOCK_ROWS)


def test_tunings(tmp_path):
    body = (
        "for (const Tuning& t : kTunings) say(t.capability, t.max_gemv_rows, t.max_gemm_f16_rows,"
        " t.max_gemm_i8_rows, t.chunk_bytes);\n"
        "for (int c : {75, 80, 87, 90, 103, 121}) say(tuning_for(c).capability);"
    )
    capabilities = [[interface.tuning_for(c).capability] for c in (75, 80, 87, 90, 103, 121)]
    assert run(tmp_path, body) == [list(t) for t in interface.TUNINGS] + capabilities
