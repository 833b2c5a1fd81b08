"""Files that come with p2pfed: in the package once installed, in the source tree otherwise."""

from pathlib import Path

import p2pfed
from p2pfed.errors import UsageError


def shipped(folder: str) -> Path:
    """``demos`` or ``topology``, wherever they are."""
    package = Path(p2pfed.__file__).parent
    installed = package / "_shipped" / folder
    return installed if installed.is_dir() else package.parent / folder


def demo_folder(name: str) -> Path:
    """:raises UsageError: there is no such demo."""
    folder = shipped("demos") / name
    if not (folder / f"{name}.toml").is_file():
        known = sorted(path.parent.name for path in shipped("demos").glob("*/README.md"))
        raise UsageError(f"no demo {name!r}; there are: {', '.join(known)}")
    return folder
