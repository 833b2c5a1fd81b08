import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from p2pfed.errors import ConfigurationError, DataError, TrainingError
from p2pfed.protocol.digests import vector_digest
from p2pfed.training.export import evaluate_model_file, export_model, read_model
from p2pfed.training.frames import Open
from p2pfed.training.loading import LoadedTask, load
from p2pfed.training.records import Share
from p2pfed.training.sampling import Position
from p2pfed.training.schema import floats_of
from p2pfed.training.task import TaskError

OPTIONS: dict[str, Any] = {
    "label": "sick",
    "hidden": [4],
    "batch_norm": True,
    "columns": [{"name": "age", "kind": "numeric", "centre": 50.0, "scale": 10.0}],
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "site.csv"
    rows = [f"{30 + n},{int(n > 20)}" for n in range(40)]
    path.write_text("age,sick\n" + "\n".join(rows) + "\n")
    return path


def request(table: Path, **changes: Any) -> Open:
    fields = {
        "task_kind": "tabular",
        "site": "north",
        "options": OPTIONS,
        "data": {"path": str(table)},
        "device": "cpu",
    }
    return Open(**{**fields, **changes})


def python_request(table: Path, source: str, task_class: str, **changes: Any) -> Open:
    module = task_class.partition(":")[0]
    (table.parent / f"{module}.py").write_text(textwrap.dedent(source))
    python = {"task_kind": "python", "task_class": task_class, "task_path": str(table.parent)}
    return request(table, **{**python, "options": {}, **changes})


def genesis(loaded: LoadedTask) -> Any:
    return loaded.learner.genesis()


def fresh_state(loaded: LoadedTask) -> Any:
    return np.zeros(loaded.learner.layout.floats, np.float32)


def test_a_tabular_task_loads_alike_every_time(table: Path) -> None:
    loaded, again = load(request(table)), load(request(table))
    assert (loaded.training_records, loaded.holdout_records) == (27, 13)
    assert loaded.learner.layout.optimiser == floats_of(list(loaded.learner.model.parameters()))
    assert loaded.learner.schema.digest == again.learner.schema.digest
    assert vector_digest(genesis(loaded)) == vector_digest(genesis(again))
    assert vector_digest(genesis(load(request(table, seed=1)))) != vector_digest(genesis(loaded))


def test_fewer_records_than_the_floor_are_refused(table: Path) -> None:
    with pytest.raises(DataError, match="27 training records; 28 are required"):
        load(request(table, minimum_records=28))
    assert load(request(table, minimum_records=27)).training_records == 27


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_naming_the_site_file(
    table: Path, device: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.device") as caught:
        load(request(table, device=device, site_file="north.toml"))
    assert caught.value.problems[0].file == Path("north.toml")


def test_several_processes_take_no_part_in_private_training(table: Path) -> None:
    private = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}
    options = OPTIONS | {"batch_norm": False}
    with pytest.raises(ConfigurationError, match="differential privacy") as caught:
        load(request(table, options=options, **private), Share(0, 2))
    assert [problem.key for problem in caught.value.problems] == ["training.processes"]


def test_several_processes_and_batch_norm_are_warned_of(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(request(table), Share(0, 2))
    assert "batch norm (1) sees each process's share" in caplog.text
    caplog.clear()
    load(request(table), Share(1, 2))
    load(request(table, options=OPTIONS | {"batch_norm": False}), Share(0, 2))
    assert not caplog.records


def test_several_processes_take_a_gpu_each(table: Path) -> None:
    with pytest.raises(ConfigurationError, match="a GPU of its own"):
        load(request(table, device="cuda:1"), Share(0, 2))


def test_a_class_of_the_sites_own_directory_is_found(table: Path) -> None:
    source = """
        import torch
        from torch.utils.data import TensorDataset
        from p2pfed.training.task import Datasets

        class Mine:
            def __init__(self, options, data):
                self.options, self.data = options, data
            def build_model(self):
                return torch.nn.Linear(2, 1).double()
            def datasets(self):
                data = TensorDataset(torch.zeros(9, 2), torch.zeros(9))
                return Datasets(data, data)
            def loss(self, model, batch):
                return model(batch[0]).mean()
            def metrics(self, model, batches):
                return {}
    """
    options = {"batch_size": 3, "width": 2}
    loaded = load(python_request(table, source, "own_directory_task:Mine", options=options))
    assert loaded.learner.settings.batch_size == 3
    assert loaded.learner.model.weight.dtype == torch.float32
    assert vars(loaded.learner.task)["options"] == options
    with pytest.raises(TrainingError, match=r"give it a method file_dataset\(path\)"):
        evaluate_model_file(loaded.learner, exported(loaded, table.parent), table)


@pytest.mark.parametrize(
    ("source", "task_class", "message"),
    [
        ("", "no_colon_task", "form module:Class"),
        ("", "empty_task:Missing", "has no class Missing"),
        ("Number = 3", "number_task:Number", "has no class Number"),
        ("class Half:\n    def loss(self): ...", "half_task:Half", "lacks build_model, datasets"),
        ("import not_there_at_all", "importing_task:Any", "No module named 'not_there_at_all'"),
    ],
    ids=["form", "missing", "no class", "lacking", "import"],
)
def test_a_class_that_cannot_be_used_is_refused_naming_the_topology_file(
    table: Path, source: str, task_class: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(python_request(table, source, task_class, topology_file="federation.toml"))
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (Path("federation.toml"), "task.class")


def test_a_class_in_no_module_at_all_names_the_remedy(table: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\[task\] path"):
        load(request(table, task_kind="python", task_class="nowhere.to_be_found:Task"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "importing broken_task_{n} raised ZeroDivisionError"),
        (
            "class Task:\n"
            "    def __init__(self, options, data): raise ValueError('no ward')\n"
            "    build_model = datasets = loss = metrics = print",
            "broken_task_{n}:Task raised ValueError: no ward",
        ),
        (
            "class Task:\n"
            "    def __init__(self, options, data): pass\n"
            "    def datasets(self): return 3\n"
            "    build_model = loss = metrics = print",
            "datasets returned int",
        ),
    ],
    ids=["import", "constructor", "datasets"],
)
def test_a_task_whose_own_code_fails_says_where(
    table: Path, source: str, message: str, request: pytest.FixtureRequest
) -> None:
    n = request.node.callspec.id
    with pytest.raises(TaskError, match=message.format(n=n)):
        load(python_request(table, source, f"broken_task_{n}:Task"))


def exported(loaded: LoadedTask, directory: Path) -> Path:
    path = directory / "model.safetensors"
    lineage = {"federation": "four", "round": "7"}
    export_model(loaded.learner, genesis(loaded), fresh_state(loaded), path, lineage)
    return path


def test_an_exported_model_loads_into_plain_torch(table: Path) -> None:
    loaded = load(request(table))
    path = exported(loaded, table.parent)
    fresh = load(request(table, seed=9))
    fresh.learner.model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert genesis(fresh).tobytes() == genesis(loaded).tobytes()
    read_back = read_model(path, loaded.learner)
    assert read_back.parameters.tobytes() == genesis(loaded).tobytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in table.parent.glob("*.part")] == []
    evaluated = evaluate_model_file(loaded.learner, path, table)
    assert evaluated.records == 40
    assert evaluated.metrics.keys() == {"auc", "accuracy", "loss"}


def test_an_export_that_cannot_be_written_leaves_nothing_behind(table: Path) -> None:
    loaded = load(request(table))
    target = table.parent / "taken"
    target.mkdir()
    with pytest.raises(TrainingError, match="cannot be written"):
        export_model(loaded.learner, genesis(loaded), fresh_state(loaded), target, {})
    with pytest.raises(TrainingError, match="cannot be written"):
        path = table.parent / "no" / "model"
        export_model(loaded.learner, genesis(loaded), fresh_state(loaded), path, {})
    assert sorted(entry.name for entry in table.parent.iterdir()) == ["site.csv", "taken"]


def test_a_model_file_of_another_schema_is_refused(table: Path) -> None:
    loaded = load(request(table))
    path = exported(loaded, table.parent)
    wider = load(request(table, options={**OPTIONS, "hidden": [5]}))
    with pytest.raises(TrainingError, match=r"'0.weight' is \(4, 1\).*has \(5, 1\)"):
        read_model(path, wider.learner)
    deeper = load(request(table, options={**OPTIONS, "hidden": [4, 1]}))
    with pytest.raises(TrainingError, match=r"'6\.weight' is missing"):
        read_model(path, deeper.learner)
    with pytest.raises(TrainingError, match="no readable safetensors file"):
        read_model(table, loaded.learner)


def test_an_exported_model_has_the_sites_own_batch_norm(table: Path) -> None:
    loaded = load(request(table, options={**OPTIONS, "batch_norm": True}))
    learner = loaded.learner
    own = fresh_state(loaded)
    site = learner.layout.over(own)
    site.local[:] = np.arange(site.local.size) + 1
    site.write_head(Position(), prepared=False)
    path = table.parent / "model.safetensors"
    export_model(learner, genesis(loaded), own, path, {})
    assert safetensors.torch.load_file(path)["1.running_mean"].tolist() == [9.0, 10.0, 11.0, 12.0]
    read_back = read_model(path, learner)
    assert np.array_equal(learner.layout.over(read_back.state).local, site.local)
    data = loaded.datasets.holdout
    assert learner.evaluate(data, read_back.parameters, read_back.state) == learner.evaluate(
        data, genesis(loaded), own
    )


@pytest.mark.parametrize(
    "module",
    [
        "p2pfed.daemon.trainer",
        "p2pfed.training.frames",
        "p2pfed.training.regions",
        "p2pfed.protocol.digests",
    ],
)
def test_what_the_daemon_imports_does_not_import_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_vector_digest_is_of_its_bytes_alone() -> None:
    vector = np.arange(6, dtype=np.float32)
    # As `b3sum --derive-key "p2pfed/1 vector"` prints it for the little-endian bytes.
    known = "ae037e9d05c1c570f1b3ea46da857ea48f5a5a75c73540570f6680afd0fd8ea8"
    assert vector_digest(vector[:5]).hex() == known
    assert vector_digest(vector) == vector_digest(np.repeat(vector, 2)[::2])
    assert vector_digest(vector) != vector_digest(vector[:5])
    assert vector_digest(np.array([0.0], np.float32)) != vector_digest(np.array([-0.0], np.float32))
    for bad in (vector.astype(np.float64), vector.reshape(2, 3)):
        with pytest.raises(ValueError, match="flat float32"):
            vector_digest(bad)
