"""Training: state, step, checkpoints, and the loop that ties them together."""
