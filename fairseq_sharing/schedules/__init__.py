"""Sharing schedules, which change the layer map during training: share-then-unshare and dynamic layer tying."""
