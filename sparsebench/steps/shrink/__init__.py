"""``shrink`` as a step of a recipe: it removes blocks, neurons, heads, experts or hidden channels from the tensors."""
