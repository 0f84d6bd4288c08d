"""MoEUT (Csordas et al. 2024): Universal Transformers with mixture-of-experts layers."""
