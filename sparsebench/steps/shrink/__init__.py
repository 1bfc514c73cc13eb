"""``shrink`` as a step of a recipe: it removes blocks, neurons, heads or experts from the tensors."""
