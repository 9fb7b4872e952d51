"""Integrations: makes other packages work with packed layers, and writes packed models in their formats.

This room may import any room below it in docs/concepts/architecture.md.
"""
