"""Prediction: what a trained classifier says of pictures without labels, as a table."""
