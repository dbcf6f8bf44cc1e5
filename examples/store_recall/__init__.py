"""STORE-RECALL: a bit is kept until it is asked for."""
