"""Admin (Liu et al. 2020): residual weights that keep deep post-norm stacks stable, one vector per depth."""
