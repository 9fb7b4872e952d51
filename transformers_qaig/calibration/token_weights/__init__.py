"""Token weights: how much each token counts in a search, by the name that a recipe has.

`token_weights_of` makes them. No other file of `calibration` is imported here.
"""
