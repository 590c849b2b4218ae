"""The one exception of the engine that means "the caller can mend this"."""


class UserError(ValueError):
    """A mistake of the caller's: one sentence saying what was expected, given, and what to do."""
