"""The decoder: NNX modules that describe it, pure functions over plain parameter dicts."""
