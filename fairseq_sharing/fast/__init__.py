"""The fast path: equal training up to rounding, with fewer and larger operations."""
