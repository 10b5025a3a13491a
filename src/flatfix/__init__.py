"""Flatfix takes a team from labelled images in object storage to a monitored production classifier."""

__version__ = "0.1.0"
