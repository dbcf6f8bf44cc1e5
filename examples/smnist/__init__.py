"""Sequential MNIST: digits that are shown pixel by pixel."""
