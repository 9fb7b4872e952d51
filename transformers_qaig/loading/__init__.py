"""Loading: puts packed modules into a model, checks checkpoints, and places modules on devices.

This room may import `plan` and the rooms below it in docs/concepts/architecture.md.
"""
