"""Weights in and out: one file per format; `load.py` tells them apart and builds models from them."""
