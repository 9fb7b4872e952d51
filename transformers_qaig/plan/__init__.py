"""Plan: decides which weights get which scheme, under a width or a budget.

This room may import `execution` and the rooms below it in docs/concepts/architecture.md.
"""
