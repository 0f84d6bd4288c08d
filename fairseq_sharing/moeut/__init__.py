"""MoEUT (Csordas et al. 2024): Universal Transformers whose layers are banks of experts."""
