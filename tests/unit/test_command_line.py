"""The command line without a daemon: exit codes, messages, imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfed.cli.site_commands import init_site
from p2pfed.errors import ConfigurationError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "p2pfed", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
    )


def federation(directory: Path) -> Path:
    """A site directory whose files belong together, with one neighbour elsewhere."""
    blocks = [init_site(directory / name, name) for name in ("alpha", "beta")]
    document = (
        'schema_version = 1\n[federation]\nname = "test"\n[graph]\nkind = "ring"\n'
        '[task]\nkind = "tabular"\n' + "\n".join(blocks)
    )
    for name in ("alpha", "beta"):
        (directory / name / "topology.toml").write_text(document)
    return directory / "alpha"


def test_init_prints_the_block_and_makes_sound_files(short_tmp: Path) -> None:
    done = run("init", str(short_tmp / "site"), "--name", "alpha")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('[[peer]]\nname = "alpha"\nkey = "ed25519:')
    again = run("init", str(short_tmp / "site"), "--name", "alpha")
    assert again.returncode == 78
    assert "never overwritten" in again.stderr


@pytest.mark.parametrize("name", ["Alpha", "", "a b", "-a", "x" * 64])
def test_init_refuses_an_unfit_name_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="lower-case"):
        init_site(tmp_path / "site", name)
    assert not (tmp_path / "site").exists()


def test_config_check_says_ok_or_everything_that_is_wrong(short_tmp: Path) -> None:
    site = federation(short_tmp)
    done = run("config", "check", "--config", str(site / "site.toml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok ") == 5
    assert "neighbours: beta" in done.stdout
    (site / "keys" / "identity.key").chmod(0o644)
    text = (site / "topology.toml").read_text()
    (site / "topology.toml").write_text(text.replace('kind = "ring"', 'kind = "rong"'))
    done = run("config", "check", "--config", str(site / "site.toml"))
    assert done.returncode == 78
    assert "chmod 600" in done.stderr
    assert "graph.kind" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_is_not_the_listed_one_is_explained(short_tmp: Path) -> None:
    site = federation(short_tmp)
    (short_tmp / "alpha" / "site.toml").write_text('schema_version = 1\nname = "beta"\n')
    done = run("config", "check", "--config", str(site / "site.toml"))
    assert done.returncode == 78
    assert "another key" in done.stderr
    (short_tmp / "alpha" / "site.toml").write_text('schema_version = 1\nname = "gamma"\n')
    done = run("config", "check", "--config", str(site / "site.toml"))
    assert "listed there as 'alpha'" in done.stderr


@pytest.mark.parametrize(
    "command", ["status", "peers", "reload", "stop", "log", "ping beta", "export x", "evaluate x"]
)
def test_without_a_daemon_every_command_says_so(short_tmp: Path, command: str) -> None:
    site = federation(short_tmp)
    done = run(*command.split(), "--config", str(site / "site.toml"))
    assert done.returncode == 3
    assert "no daemon answers" in done.stderr
    assert "p2pfed run" in done.stderr


def test_the_site_file_is_found_where_it_is_said_to_be(short_tmp: Path) -> None:
    site = federation(short_tmp)
    assert str(site) in run("paths", cwd=site).stdout
    assert run("paths", cwd=short_tmp).returncode == 2
    assert "no site file" in run("status", cwd=short_tmp).stderr
    found = json.loads(run("paths", "--json", cwd=site).stdout)
    assert set(found) == {"config", "topology", "keys", "state", "control"}


def test_usage_errors_end_with_2(short_tmp: Path) -> None:
    assert run("frobnicate").returncode == 2
    assert run("init").returncode == 2
    assert run("demo", "nothing").returncode == 2
    (short_tmp / "full").mkdir()
    (short_tmp / "full" / "file").touch()
    assert run("demo", "--keep", str(short_tmp / "full")).returncode == 2


def test_a_bad_file_ends_run_with_78_and_no_traceback(short_tmp: Path) -> None:
    site = federation(short_tmp)
    (site / "site.toml").write_text("schema_version = 1\nnome = 'alpha'\n")
    done = run("run", "--config", str(site / "site.toml"))
    assert done.returncode == 78
    assert "did you mean 'name'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_names_what_it_stands_on() -> None:
    found = json.loads(run("version", "--json").stdout)
    assert {"p2pfed", "libp2p", "torch"} <= set(found)


HEAVY = ("torch", "libp2p", "networkx", "pandas", "numba", "matplotlib")


def test_a_status_loads_no_heavy_library() -> None:
    code = (
        "import sys, p2pfed.cli.main, p2pfed.cli.status_view, p2pfed.daemon.status, p2pfed.config\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_the_daemon_never_loads_torch() -> None:
    code = "import sys, p2pfed.daemon.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
