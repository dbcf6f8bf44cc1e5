"""Published checkpoints, run through lsnn_ext."""
