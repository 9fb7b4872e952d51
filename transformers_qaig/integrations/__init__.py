"""Integrations: makes other packages work with packed layers.

This room may import any room below it in docs/concepts/architecture.md.
"""
