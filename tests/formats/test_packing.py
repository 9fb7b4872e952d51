import pytest
import torch

from transformers_qaig.formats import packing
from transformers_qaig.formats.packing import (
    column_chunks,
    pack,
    pack_zero_point,
    packed_shapes,
    unpack,
    unpack_zero_point,
)

ALL_BITS = range(2, 9)


def random_codes(*shape: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


def bit_stream(row: list[int], bits: int) -> list[int]:
    """The layout by its definition, with Python's big integers."""
    stream = sum(code << (i * bits) for i, code in enumerate(row))
    count = -(-len(row) * bits // 32)
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 31, 32, 33, 64, 100])
def test_words_are_the_dense_bit_stream(bits, columns):
    codes = random_codes(3, columns, bits=bits)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [bit_stream(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(words, bits, columns), codes)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(("out_features", "groups"), [(1, 1), (5, 3), (32, 2), (65, 1)])
def test_zero_points_are_packed_along_the_outputs(bits, out_features, groups):
    zero = random_codes(out_features, groups, bits=bits)
    words = pack_zero_point(zero, bits)
    assert words.is_contiguous()
    assert words.t().tolist() == [bit_stream(column, bits) for column in zero.t().tolist()]
    assert torch.equal(unpack_zero_point(words, bits, out_features), zero)


@pytest.mark.parametrize("bits", [3, 8])
def test_chunked_rows_give_the_same_words(bits, monkeypatch):
    codes = random_codes(13, 50, bits=bits)
    whole = pack(codes, bits)
    monkeypatch.setattr(packing, "_CHUNK_CODES", 120)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 50), codes)


@pytest.mark.parametrize(
    ("rows", "columns", "step"),
    [(4096, 4096, 512), (11008, 4096, 128), (1024, 1024, 1024), (32000, 4096, 64), (10**7, 96, 32), (2, 40, 40)],
)
def test_chunks_of_columns_cut_no_group_of_128_if_they_hold_one(rows, columns, step):
    chunks = column_chunks(rows, columns)
    assert [start for start, _ in chunks] == list(range(0, columns, step))
    assert [stop for _, stop in chunks] == [*range(step, columns, step), columns]


def test_accepts_strided_codes_and_words():
    codes = random_codes(40, 24, bits=5).t()
    words = pack(codes, 5)
    assert torch.equal(words, pack(codes.contiguous(), 5))
    assert torch.equal(unpack(words.repeat(1, 2)[:, : words.shape[1]], 5, 40), codes)


def test_packed_shapes_describe_what_pack_makes():
    shapes = packed_shapes(10, 48, 3, 16, sym=False)
    assert list(shapes) == ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"]
    assert shapes["weight_packed"] == (tuple(pack(random_codes(10, 48, bits=3), 3).shape), torch.int32)
    assert shapes["weight_zero_point"] == (tuple(pack_zero_point(random_codes(10, 3, bits=3), 3).shape), torch.int32)
    assert shapes["weight_scale"] == ((10, 3), None)
    assert shapes["weight_shape"] == ((2,), torch.int64)
    assert packed_shapes(10, 48, 3, -1, sym=True)["weight_scale"] == ((10, 1), None)
    assert "weight_zero_point" not in packed_shapes(10, 48, 3, 16, sym=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.zeros(2, 8, dtype=torch.int8), 4), "codes must be a 2-D torch.uint8"),
        (lambda: pack(torch.zeros(8, dtype=torch.uint8), 4), "codes must be a 2-D"),
        (lambda: pack(torch.full((2, 8), 16, dtype=torch.uint8), 4), r"codes must be in 0\.\.15 for bits=4, found 16"),
        (lambda: pack(torch.zeros(2, 8, dtype=torch.uint8), 1), "bits must be between 2 and 8, got 1"),
        (lambda: unpack(torch.zeros(2, 1, dtype=torch.int32), 9, 3), "bits must be between 2 and 8, got 9"),
        (lambda: unpack(torch.zeros(2, 2, dtype=torch.int32), 4, 8), "words must have 1 columns"),
        (lambda: unpack(torch.zeros(2, 1, dtype=torch.int64), 4, 8), "words must be a 2-D torch.int32"),
        (lambda: pack_zero_point(torch.zeros(2, dtype=torch.uint8), 4), "zero must be a 2-D"),
        (lambda: unpack_zero_point(torch.zeros(2, 3, dtype=torch.int32), 4, 8), "words must have 1 columns"),
        (lambda: packed_shapes(4, 48, 4, 32, True), "group_size must be -1 .* or divide in_features=48, got 32"),
        (lambda: packed_shapes(4, 48, 4, 0, True), "group_size must be"),
        (lambda: packed_shapes(0, 48, 4, 16, True), "must be positive"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_zero_points_of_one_word_a_group_unpack_as_a_file_gives_them():
    zero = random_codes(8, 3, bits=4)
    words = pack_zero_point(zero, 4).clone(memory_format=torch.contiguous_format).view(1, 3)
    assert torch.equal(unpack_zero_point(words.as_strided((1, 3), (3, 1)), 4, 8), zero)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_ragged_width(bits):
    for columns in range(1, 131):
        codes = random_codes(2, columns, bits=bits)
        words = pack(codes, bits)
        assert words.tolist() == [bit_stream(row, bits) for row in codes.tolist()]
        assert torch.equal(unpack(words, bits, columns), codes)
