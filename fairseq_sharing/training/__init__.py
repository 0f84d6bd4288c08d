"""Training: compose a configuration, run ``fairseq-train`` on it, keep what it did."""
