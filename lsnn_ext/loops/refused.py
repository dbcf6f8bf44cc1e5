"""Refused: what a recording cannot hold."""


class Refused(Exception):
    """A model, or a part of it, that is not converted, with the reason and the user's line."""

    def __init__(self, reason: str, line: str = "") -> None:
        self.reason, self.line = reason, line
        super().__init__(f"{line}: {reason}" if line else reason)
