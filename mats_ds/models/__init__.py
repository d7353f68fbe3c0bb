"""The token-pruned vision transformer."""
