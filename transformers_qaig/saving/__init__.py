"""Saving: what is saved beside the weights, and the trial of a save on the meta device.

This room may import `calibration` and the rooms below it in docs/concepts/architecture.md.
"""
