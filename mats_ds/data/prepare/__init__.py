"""Preparing a set of videos: import, check, transcode."""
