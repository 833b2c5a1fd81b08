"""What must not leave a site with a bug report, and what is written in its place.

Three nets, one behind the other. A site's file is taken apart and its secret-like values and data
settings are withheld. Every text then loses the values withheld there, the site's own paths, the
home directory, and whatever looks like a password. At the end, what was collected is searched for
the site's keys as bytes, in hexadecimal and in base64.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from p2pfed.daemon.logs import SECRET_WORDS
from p2pfed.settings import Settings

WITHHELD = "(withheld)"
SECRET_KEY = re.compile(
    "|".join((*SECRET_WORDS, "passwd", "passphrase", "credential", "api_?key", "access_?key")),
    re.IGNORECASE,
)
LEAST_WORD_CHARACTERS = 4
LEAST_SECRET_CHARACTERS = 6  # a shorter value would take letters out of every word

# What says itself that it is a secret, wherever it stands: name=value and https://user:word@host.
_NAMED_SECRET = re.compile(
    r"(?i)((?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api[-_]?key|access[-_]?key)"
    r"['\"]?\s*[=:]\s*)([^\s,;/'\"]+|'[^']*'|\"[^\"]*\")"
)
_HOME = re.compile(r"/(?:home|Users)/[^/\s'\"]+")
_URL_SECRET = re.compile(r"(?i)([a-z][a-z0-9+.-]*://)[^/\s@]+@")


class Redaction:
    """Replaces what must not leave, in texts and in what JSON is made of."""

    def __init__(self) -> None:
        self._replacements: dict[str, str] = {}
        self._words: dict[str, str] = {}

    def add_path(self, path: Path, label: str) -> None:
        """Write ``label`` for a directory or file of the site, as it is named and resolved."""
        for known in (path, path.resolve()):
            if known != Path(known.anchor):
                self._replacements.setdefault(str(known), label)

    def add_word(self, word: str, label: str) -> None:
        """Write ``label`` where ``word`` stands by itself: a user's or a machine's name."""
        if len(word) >= LEAST_WORD_CHARACTERS:
            self._words[word] = label

    def add_secret(self, value: str) -> None:
        """Write that it is withheld wherever ``value`` stands."""
        if len(value) >= LEAST_SECRET_CHARACTERS:
            self._replacements[value] = WITHHELD

    def text(self, text: str) -> str:
        # The longest first: a site's directory lies in the home directory.
        for known in sorted(self._replacements, key=len, reverse=True):
            text = text.replace(known, self._replacements[known])
            escaped = json.dumps(known)[1:-1]
            if escaped != known:
                text = text.replace(escaped, self._replacements[known])
        for word, label in self._words.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", label, text)
        text = _HOME.sub("~", text)
        text = _URL_SECRET.sub(rf"\1{WITHHELD}@", text)
        return _NAMED_SECRET.sub(rf"\1{WITHHELD}", text)

    def value(self, value: Any) -> Any:
        """The same for everything in a document, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): WITHHELD
                if SECRET_KEY.search(str(key)) and isinstance(item, str)
                else self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def withhold_settings(
    document: Mapping[str, Any], known: type[Settings], redaction: Redaction
) -> dict[str, Any]:
    """A site file as it may be shown; what is left out of it is left out everywhere.

    Shown are the settings of ``known``, unless their name sounds like a secret. What a table
    without settings of its own holds is a task's, such as ``data``, and goes as a whole.
    """
    shown: dict[str, Any] = {}
    for key, value in document.items():
        field = known.model_fields.get(key)
        table = field.annotation if field is not None else None
        if field is None or SECRET_KEY.search(key):
            shown[key] = _withheld(value, redaction)
        elif not isinstance(value, Mapping):
            shown[key] = value
        elif isinstance(table, type) and issubclass(table, Settings):
            shown[key] = withhold_settings(value, table, redaction)
        else:
            shown[key] = _withheld(value, redaction)
    return shown


def _withheld(value: Any, redaction: Redaction) -> Any:
    if isinstance(value, Mapping):
        return {key: _withheld(item, redaction) for key, item in value.items()}
    if isinstance(value, list):
        return [_withheld(item, redaction) for item in value]
    if isinstance(value, str):
        redaction.add_secret(value)
    return WITHHELD


def forms_of(secret: bytes) -> Iterable[bytes]:
    """How a secret may stand in a file: as it is, in hexadecimal, in base64 at each offset."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            # The characters that depend on the secret alone, not on what stands around it.
            first = 4 if offset else 0
            yield encode(bytes(offset) + secret)[first : (offset + len(secret)) // 3 * 4]


def finds(content: bytes, secrets: Iterable[bytes]) -> bool:
    """Whether any of ``secrets`` stands in ``content`` in any of those forms."""
    return any(form in content for secret in secrets for form in forms_of(secret) if form)
