"""Fused linears: which of their rows make which channels."""

import pytest

from tests.equalization.blocks import HEADS, KV, Branch, C, D, FusedAttention, FusedMLP, I
from tests.equalization.probing import probe, repeat_of_heads
from transformers_qaig.equalization import Group

QKV = (HEADS * D, KV * D, KV * D)


@pytest.mark.parametrize(
    ("rows", "split", "channels"),
    [
        (sum(QKV), lambda y: y.split(QKV, -1), repeat_of_heads(first=sum(QKV[:2]))),
        (sum(QKV), lambda y: y.split(QKV[::-1], -1)[::-1], repeat_of_heads()),
        (3 * C, lambda y: y.chunk(3, -1), tuple(range(2 * C, 3 * C))),
        (  # [heads, (q, k, v), D]
            3 * C,
            lambda y: [t.flatten(-2) for t in y.unflatten(-1, (HEADS, 3, D)).unbind(-2)],
            tuple(head * 3 * D + 2 * D + d for head in range(HEADS) for d in range(D)),
        ),
        (  # [key-value heads, (q…, k, v), D]
            sum(QKV),
            lambda y: [t.flatten(-3) for t in y.unflatten(-1, (KV, 2 + HEADS // KV, D)).split([2, 1, 1], -2)],
            tuple(kv * 4 * D + 3 * D + d for kv in range(KV) for _ in range(HEADS // KV) for d in range(D)),
        ),
    ],
    ids=["q|k|v", "v|k|q", "equal thirds", "interleaved by head", "interleaved by key-value head"],
)
def test_fused_qkv(rows: int, split, channels: tuple[int, ...]):
    groups = probe(Branch(FusedAttention(rows, split)))
    assert groups[("f.fused",)].producer == "norm"
    assert groups[("f.d",)] == Group(("f.d",), "f.d", "f.fused", channels)


@pytest.mark.parametrize(
    ("split", "channels"),
    [
        (lambda y: y.chunk(2, -1), range(I, 2 * I)),
        (lambda y: y.chunk(2, -1)[::-1], range(I)),
        (lambda y: (y[..., ::2], y[..., 1::2]), range(1, 2 * I, 2)),
    ],
    ids=["gate|up", "up|gate", "alternating"],
)
def test_fused_gate_up(split, channels: range):
    assert probe(Branch(FusedMLP(split)))[("f.o",)] == Group(("f.o",), "f.o", "f.fused", tuple(channels))
