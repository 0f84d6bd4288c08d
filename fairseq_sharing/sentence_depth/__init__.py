"""A depth per sentence, chosen before decoding by a classifier on the encoder's output."""
