"""What a model's tensors are: layers, kinds, and the axes along which they can be cut."""
