"""What can be done to a model, one folder a step: pruning, and the text that calibrated steps read."""
