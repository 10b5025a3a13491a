"""Labelled pictures: sources, frozen dataset versions, the decoded cache and the batches that training reads."""
