"""The recipe and the DeepSpeed JSON, typed and checked."""
