"""Evaluators: objects that score parameters, inside a training run or alone on a checkpoint."""
