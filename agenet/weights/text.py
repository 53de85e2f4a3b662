"""Text out of a file or from a server, fit to be shown."""


def printable(text: str, longest: int = 100) -> str:
    """The first characters; "?" for what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])
