"""Calibration: the loop over targets, the steps on one block, and resuming.

This room may import `token_weights` and the rooms below it in docs/concepts/architecture.md.
"""
