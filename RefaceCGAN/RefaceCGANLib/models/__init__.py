"""Models: cards, weights and their safe loading."""
