"""B2T connections (Takase et al. 2022): a residual connection from the bottom to the top of each layer."""
