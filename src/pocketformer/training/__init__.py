"""Training: data and splits, the recipe, one engine for single networks and supernets, evaluation."""
