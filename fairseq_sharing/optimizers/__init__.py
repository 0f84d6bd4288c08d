"""Optimizers: thin fairseq adapters."""
