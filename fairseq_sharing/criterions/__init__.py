"""Losses: thin fairseq adapters over the rooms above."""
