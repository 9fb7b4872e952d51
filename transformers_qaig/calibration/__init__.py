"""Calibration: the loop over targets, the steps on one block, and resuming.

This room may import `report` and the rooms below it in docs/concepts/architecture.md.
"""
