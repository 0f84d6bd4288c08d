"""Checkpoints: reading and writing them safely, the sharing recorded in them, averaging and exchange."""
