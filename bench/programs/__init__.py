"""Public programs with spiking loops, converted unchanged: `python -m bench.programs --help`."""
