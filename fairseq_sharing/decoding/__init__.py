"""Translating plain text with a trained model, and exporting it to a faster engine."""
