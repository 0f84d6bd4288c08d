"""One training run: its plan, the processes that train, and their progress."""
