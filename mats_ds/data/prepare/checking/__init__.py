"""Decode every file of a manifest once and list the readable ones."""
