"""The site file and the shared reading of operators' files."""

from pathlib import Path

import pytest

from p2pfed.config import SITE_TEMPLATE, SiteFile, load_site
from p2pfed.errors import ConfigurationError


def write(directory: Path, text: str) -> Path:
    path = directory / "site.toml"
    path.write_text(text)
    return path


def problems(path: Path) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load_site(path)
    assert all(problem.file == path for problem in caught.value.problems)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_the_template_is_a_sound_file(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, SITE_TEMPLATE.format(name="alpha")))
    assert site.file.name == "alpha"
    assert site.topology_path == tmp_path / "topology.toml"
    assert site.control_socket == tmp_path / "state" / "control.sock"
    assert site.data == {"path": str(tmp_path / "data.csv")}


def test_every_bad_key_is_reported_at_once_with_its_remedy(tmp_path: Path) -> None:
    found = problems(
        write(
            tmp_path,
            "schema_version = 1\nname = 'Alpha'\ntopologi = 'x'\n"
            "[training]\ndevice = 'gpu'\nthreads = 'two'\n[listen]\naddresses = ['10.0.0.1:7400']",
        )
    )
    assert set(found) == {
        "name",
        "topologi",
        "training.device",
        "training.threads",
        "listen.addresses[0]",
    }
    assert "did you mean 'topology'?" in found["topologi"]
    assert "/ip4/10.1.0.5/tcp/7400" in found["listen.addresses[0]"]
    assert "'two'" in found["training.threads"]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "required" in problems(write(tmp_path, "schema_version = 1"))["name"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * (4 * 1024 * 1024 + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_toml_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(content)
    assert says in problems(path)[""]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert "no such file" in problems(tmp_path / "site.toml")[""]


def test_a_socket_path_that_the_kernel_refuses_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, f"schema_version = 1\nname = 'a'\n[control]\nsocket = '{'x' * 120}'")
    assert "at most 107 bytes" in problems(path)["control.socket"]


def test_every_field_is_documented() -> None:
    for name, field in SiteFile.model_fields.items():
        assert field.description, name
        table = field.annotation
        for inner, info in getattr(table, "model_fields", {}).items():
            assert "restart" in (info.description or ""), f"{name}.{inner}"


def test_what_a_site_may_use_for_its_local_steps_is_bounded(tmp_path: Path) -> None:
    text = "schema_version = 1\nname = 'alpha'\n[training]\n"
    found = problems(write(tmp_path, text + "processes = 17\nloader_workers = 65"))
    assert set(found) == {"training.processes", "training.loader_workers"}
    training = load_site(write(tmp_path, text + "processes = 2\nloader_workers = 4")).file.training
    assert (training.processes, training.loader_workers) == (2, 4)
