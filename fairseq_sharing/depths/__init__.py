"""One model, several depths: train a stack at several numbers of layers, and translate at any of them."""
