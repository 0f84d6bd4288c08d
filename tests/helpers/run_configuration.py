"""The configuration of a run directory for tests without training."""

CONFIG = {
    "run": "a",
    "dataset": "toy",
    "seed": 1,
    "train": {"lr": 0.1, "max_epoch": 3, "keep_last_epochs": 2},
}
