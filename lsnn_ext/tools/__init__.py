"""Around the layers: files (storage, nir), pictures (plot), answers (plan, profiler, info)."""
