"""Delays that are learned by gradient descent."""
