"""Engine, loop, optimizer, checkpoints, observers."""
