"""How much each token counts in a search, by the name that a recipe gives: `token_weights_of`."""
