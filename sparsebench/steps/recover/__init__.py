"""Recovery: what stays of a model is trained to do what the dense model does."""
