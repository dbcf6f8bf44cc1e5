"""Learning to learn: a network that learns a new function without changing its weights."""
