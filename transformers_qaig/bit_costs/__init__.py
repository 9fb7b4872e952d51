"""Bit costs: what each way to store each weight costs the answers, measured before anything is quantized.

This room may import `calibration` and the rooms below it in docs/concepts/architecture.md.
"""
