"""Searches over model files and training flags: what is searched, the trials, and their results."""
