"""Evaluate a trained run: average checkpoints, translate, score and compare."""
