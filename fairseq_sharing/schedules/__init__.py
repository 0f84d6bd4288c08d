"""Sharing that changes while a model trains: share-then-unshare, and dynamic layer tying."""
