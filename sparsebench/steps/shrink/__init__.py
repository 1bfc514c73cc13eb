"""``shrink`` as a step of a recipe: whole blocks, neurons and heads that really go, on models that stock transformers loads."""
