"""Ranks: their devices, their exchanges, how they end."""
