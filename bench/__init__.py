"""One recurrent layer, a whole sequence, and its peers: `python -m bench --help`."""
