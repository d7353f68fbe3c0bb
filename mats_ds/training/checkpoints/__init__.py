"""Checkpoints: written, hashed, pruned, resumed."""
