"""Report: what a run did, evaluation, comparison, pictures and the model card.

This room may import `data` and the rooms below it in docs/concepts/architecture.md.
"""
