"""One video file: its container, its frames, its pictures."""
