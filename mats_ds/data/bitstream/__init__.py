"""Headers of coded video: what packets say of their pictures."""
