"""Training: the Lightning module and callbacks, on-device augmentation, and `run.train`."""
