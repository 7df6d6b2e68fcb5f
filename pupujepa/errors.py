"""The one error that a front door turns into a sentence: something that the user can put right."""


class UserError(ValueError):
    """A wrong input. The message names the thing, what follows from it, and the remedy."""
