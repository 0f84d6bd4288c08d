"""The Universal Transformer (Dehghani et al. 2019): depth signal, positions at every depth, and ACT."""
