"""Calibration data: from any form that a user has to the model's inputs.

This room may import `loading` and the rooms below it in docs/concepts/architecture.md.
"""
