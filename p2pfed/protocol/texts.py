"""Text from elsewhere, made fit for a log line and a terminal."""

import unicodedata


def printable(text: str, most: int) -> str:
    """``text`` in one line that nothing interprets, of at most ``most`` characters.

    What does not print (control characters, and with them terminal escape sequences; line breaks;
    characters that reverse or hide what follows) is shown as an escape, as ``\\x1b``: refused, it
    would hide from the operator what an honest neighbour with a line break in its reason has to
    say; dropped, that there was anything. Spaces of any width become the plain one. Letters of
    every language stay.
    """
    return "".join(map(_shown, text[:most]))[:most]


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")
