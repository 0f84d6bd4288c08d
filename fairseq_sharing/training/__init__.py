"""One training run: its plan, its processes and their progress."""
