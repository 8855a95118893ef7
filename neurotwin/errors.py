"""What a user can cause and cure."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake that its message explains and says how to cure; programs show the message and no traceback.

    Each part of the library raises its own subclass: :class:`~neurotwin.config.ConfigError` for YAML files,
    :class:`~neurotwin.data.session.SessionError` for recordings, and so on.
    """
