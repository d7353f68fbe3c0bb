"""Motion scores, and the selection of frames and tokens by them."""
