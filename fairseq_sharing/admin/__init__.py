"""Admin (Liu et al. 2020): residual weights that stabilize deep post-norm stacks."""
