"""From image bytes to a prediction, without torch: what serving runs and training shares."""
