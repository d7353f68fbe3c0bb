"""Frozen features of videos, for `extract` and `probe`.

features        an encoder and views -> the arrays of a shard, or a set in memory
feature_folder  `extract`: shards of features of whole videos, resumable, on any number of ranks
feature_store   the files: shards and sets with a digest of what they depend on
windows         the sliding windows of a video, each frame decoded once
window_files    its files of one video, and entries for the configs of ActionFormer and OpenTAD
window_folder   `extract --window`: one array a video, for temporal action detection
"""
