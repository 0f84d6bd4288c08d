"""Depth parameters: what a depth has of its own on top of the parameter set that it shares."""
