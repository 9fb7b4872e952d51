"""Execution: runs a model block by block, with paused forwards, interception and offloading.

This room may import `equalization` and the rooms below it in docs/concepts/architecture.md.
"""
