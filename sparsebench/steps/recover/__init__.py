"""Recovery: the weights that remain after compression are trained to do what the dense model does."""
