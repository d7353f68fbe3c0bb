"""Plumbing that every room may use. It knows no video, model or engine, and imports nothing of ours
but the base."""
