"""Rounding: grids, Hessians, GPTQ, clipping and learned rounding of one weight.

This room may import `config` and the rooms below it in docs/concepts/architecture.md.
"""
