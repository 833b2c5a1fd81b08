"""``p2pfed backup`` and ``p2pfed restore``: what they do and what they say of it."""

from datetime import UTC, datetime
from pathlib import Path

from p2pfed.config import load_site
from p2pfed.daemon.backup import Manifest, back_up, mark_in_place, restore
from p2pfed.errors import UsageError

ASKS_FIRST = (
    "when it starts, the daemon asks its neighbours which rounds this site has signed, and "
    "signs nothing before it knows"
)


def backup_site(config: Path, output: Path, *, with_key: bool) -> list[str]:
    """Write a backup; what is in it, a line each.

    :raises StoreError: it cannot be made.
    """
    manifest = back_up(load_site(config), output, with_key=with_key)
    lines = [f"{output}: {_described(manifest)}, {manifest.size_bytes} bytes"]
    if with_key:
        lines.append(
            "it holds this site's secret keys: whoever reads it can pass for this site; keep it "
            "where only you can"
        )
    else:
        lines.append("the secret keys are not in it; back them up once with --with-key")
    return lines


def restore_site(config: Path, archive: Path | None, *, in_place: bool) -> list[str]:
    """Bring a backup's state back, or mark the one that is there; what was done, a line each.

    :raises UsageError: neither an archive nor ``in_place`` is given, or both.
    :raises StoreError: it cannot be done; nothing was changed.
    """
    if (archive is None) is not in_place:
        raise UsageError("give the backup to restore, or --in-place for the state that is there")
    site = load_site(config)
    if archive is None:
        round_number = mark_in_place(site)
        lines = [f"{site.state_directory}: marked as restored, goes on with round {round_number}"]
    else:
        done = restore(site, archive)
        lines = [f"{done.directory}: {_described(done.manifest)}"]
        if done.keys_written:
            lines.append(f"{site.keys_directory}: the site's keys are back")
    return [
        *lines,
        ASKS_FIRST,
        f"next: p2pfed config check --config {config}, then p2pfed run --config {config}",
    ]


def _described(manifest: Manifest) -> str:
    made = datetime.fromtimestamp(manifest.created_at_seconds, UTC)
    return f"state of {manifest.site} before round {manifest.round}, of {made:%Y-%m-%d %H:%M} UTC"
