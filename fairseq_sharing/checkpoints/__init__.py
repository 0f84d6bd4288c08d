"""Read and write checkpoints safely, record the sharing in them, average them and convert them."""
