"""Readers of other formats, each to a :class:`~neurotwin.data.session.Session`."""
