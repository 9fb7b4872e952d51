"""Token weights: how much each token counts in a search, by the name that a recipe has.

`token_weights_of` makes them. This room may import `report` and the rooms below it in docs/concepts/architecture.md.
"""
