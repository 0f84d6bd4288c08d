"""Train a student on the translations (sequence level) or on the distributions (word level) of a trained teacher."""
