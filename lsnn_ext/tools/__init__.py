"""Around the layers: files (storage, nir), pictures (plot), measurements (profiler, info)."""
