"""Command line: what each command of `transformers-qaig` runs; `transformers_qaig_cli` reads its arguments.

This room may import every room below it in docs/concepts/architecture.md.
"""
