"""A manifest -> tar shards of its files, and a manifest that names them as `shard.tar#file`."""
