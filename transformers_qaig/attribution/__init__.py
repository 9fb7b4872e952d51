"""Attribution: how much each token and each weight contributes to the loss.

This room may import `equalization` and the rooms below it in docs/concepts/architecture.md.
"""
