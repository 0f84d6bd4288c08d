"""Factorized embeddings (Lan et al. 2020): a narrow table and a projection to the width of the model."""
