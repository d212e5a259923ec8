"""From documents to batches: sources, tokenizers, prepared rows, and batch = f(seed, step)."""
