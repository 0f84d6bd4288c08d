"""Prepare raw text for training with fairseq: fetch, check, clean, tokenize, segment, binarize."""
