"""Motion scores and the choice of frames and tokens."""
