"""Recovery: what stays of a model is trained to do what the dense model does."""

OWN = ("finetune", "elsa")
"""What trains a whole model on its own loss alone."""
