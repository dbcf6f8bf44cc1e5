"""Around the layers: graphs (nir), pictures (plot), answers (plan, profiler, info)."""
