"""The fast path: the same training to rounding, in fewer and larger operations."""
