"""Reading the fields of a decoded message one by one, with type and range checked."""

import math
from typing import Any

from p2pfed.errors import MalformedMessageError
from p2pfed.protocol import limits
from p2pfed.protocol.texts import printable


class FieldReader:
    """The fields of one decoded array, taken in order.

    Every method raises MalformedMessageError where the next field is not what it says.
    """

    def __init__(self, what: str, value: Any, count: int) -> None:
        if not isinstance(value, list) or len(value) != count:
            raise MalformedMessageError(f"{what}: expected {count} fields")
        self._what = what
        self._fields = iter(value)
        self._index = -1

    def _next(self) -> Any:
        self._index += 1
        return next(self._fields)

    def _fail(self, expected: str) -> MalformedMessageError:
        return MalformedMessageError(f"{self._what}: field {self._index} is not {expected}")

    def integer(self, low: int, high: int) -> int:
        value = self._next()
        if type(value) is not int or not low <= value <= high:
            raise self._fail(f"an integer from {low} to {high}")
        return value

    def number(self, low: float, high: float) -> float:
        value = self._next()
        if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
            raise self._fail(f"a number from {low} to {high}")
        return value

    def text(self, most: int = limits.MAX_TEXT_CHARACTERS) -> str:
        """A text as :func:`printable` shows it, which leaves a known word alone, and makes none
        of what is not one."""
        value = self._next()
        if type(value) is not str or len(value) > most:
            raise self._fail(f"text of at most {most} characters")
        return printable(value, most)

    def exact_bytes(self, length: int) -> bytes:
        value = self._next()
        if type(value) is not bytes or len(value) != length:
            raise self._fail(f"{length} bytes")
        return value

    def digest(self) -> bytes:
        return self.exact_bytes(limits.DIGEST_BYTES)

    def some_bytes(self, most: int) -> bytes:
        value = self._next()
        if type(value) is not bytes or len(value) > most:
            raise self._fail(f"at most {most} bytes")
        return value

    def boolean(self) -> bool:
        value = self._next()
        if type(value) is not bool:
            raise self._fail("a truth value")
        return value

    def texts(self, most: int, most_characters: int) -> tuple[str, ...]:
        """Each as :meth:`text` gives it."""
        value = self._next()
        if (
            not isinstance(value, list)
            or len(value) > most
            or any(type(text) is not str or len(text) > most_characters for text in value)
        ):
            raise self._fail(f"at most {most} texts of {most_characters} characters")
        return tuple(printable(text, most_characters) for text in value)
