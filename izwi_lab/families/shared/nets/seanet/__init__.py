"""The encoder of Mimi: SEANet, a transformer, and a convolution that halves the rate."""
