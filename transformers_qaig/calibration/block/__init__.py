"""One block: the steps of a recipe on its groups of linears, and the decisions that they make.

The loop and the costs of widths call `quantize_block` and `decide`. It imports neither, and may import what
`calibration` may.
"""
