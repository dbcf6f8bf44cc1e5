"""One recurrent layer, a whole sequence, beside its peers: `python -m bench --help`."""
