"""TIMIT: the phones of spoken sentences, frame by frame."""
