"""Backbones, the classifier that owns its preprocessing, and the weights they start from."""
