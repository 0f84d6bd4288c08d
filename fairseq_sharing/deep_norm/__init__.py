"""DeepNorm (Wang et al. 2022): fixed residual weights and a smaller initialization for deep post-norm stacks."""
