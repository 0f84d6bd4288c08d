"""From raw text to the binary files that fairseq trains on: fetch, check, clean, tokenize, segment, binarize."""
