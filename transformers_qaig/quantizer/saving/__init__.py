"""Saving: what is saved beside the weights, and the trial of a save on the meta device.

The hooks call it. It may import what `quantizer` may.
"""
