"""Transformer layers without a feed-forward network (Pires et al. 2023)."""
