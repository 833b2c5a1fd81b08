"""Collecting what is wrong with a site's records, so that it is said in one go, and briefly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pfed.errors import DataError, Problem

MAX_LISTED_PROBLEMS = 20


class Findings:
    """The problems of many records; the first are kept and the others counted."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._more = 0

    def add(self, file: Path, key: str, reason: str, remedy: str | None = None) -> None:
        """:param key: what of the file is meant, such as ``row 7``; empty for all of it."""
        if len(self._problems) < MAX_LISTED_PROBLEMS:
            self._problems.append(Problem(file, key, None, reason, remedy))
        else:
            self._more += 1

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Take down the ``DataError`` that the body raises, and go on."""
        try:
            yield
        except DataError as error:
            for problem in error.problems:
                self.add(problem.file, problem.key, problem.reason, problem.remedy)

    def check(self, source: Path) -> None:
        """:raises DataError: something was found; ``source`` is named where not all is listed."""
        if not self._problems:
            return
        problems = list(self._problems)
        if self._more:
            text = f"{self._more} more problems like these"
            problems.append(Problem(source, "", None, text, "correct those above first"))
        raise DataError(problems)


def refusal(file: Path, reason: str, remedy: str | None = None, key: str = "") -> DataError:
    """One problem as an error."""
    return DataError([Problem(file, key, None, reason, remedy)])


def file_bytes(path: Path, most: int) -> int:
    """The size of a regular file, in bytes.

    :raises DataError: no such file, no regular file, empty, or larger than ``most``.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}", "check the path") from error
    if not path.is_file():
        raise refusal(path, "is no file", "name the file itself")
    if size == 0:
        raise refusal(path, "is empty", "export it again")
    if size > most:
        raise refusal(path, f"is larger than {most} bytes", "export it in smaller parts")
    return size
