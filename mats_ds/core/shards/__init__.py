"""Files inside uncompressed tar archives, read by offset without unpacking. A path
`shard-000012.tar#cats/a.mp4` names the member `cats/a.mp4` of `shard-000012.tar`.

members   path -> its bytes: open, size and times, existence; ordinary files are handled alike
open_shards   the shards that a process reads from, opened once
table     a shard -> where each member lies, from the index beside it or from the tar's headers
"""
