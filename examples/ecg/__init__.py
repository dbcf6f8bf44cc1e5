"""Electrocardiograms: the phases of the heartbeat."""
