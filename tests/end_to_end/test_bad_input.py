"""What a daemon makes of files, data and neighbours that are not as they should be."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import Federation, Hospital

pytestmark = pytest.mark.daemons


@pytest.fixture
def alpha(short_tmp: Path) -> Iterator[Hospital]:
    with Federation(short_tmp, ["alpha", "beta"]) as federation:
        yield federation.hospitals[0]


def data(text: str) -> Callable[[Hospital], None]:
    def write(hospital: Hospital) -> None:
        (hospital.directory / "data.csv").write_text(text)

    return write


def rows(label: str = "1", feature: str = "0.5", count: int = 60) -> str:
    lines = [f"{number / 10},0.5,{number % 2}" for number in range(count)]
    return "a,b,outcome\n" + "\n".join(lines) + f"\n0.1,{feature},{label}\n"


BAD_DATA = {
    "missing": (lambda hospital: (hospital.directory / "data.csv").unlink(), "No such file"),
    "empty": (data(""), "empty"),
    "header only": (data("a,b,outcome\n"), "no"),
    "unknown column": (data(rows().replace("a,b", "a,c")), "column"),
    "all labels alike": (data("a,b,outcome\n" + "1,2,1\n" * 60), "all 60 labels are alike"),
    "label missing": (data(rows(label="")), "row 61"),
    "label of another kind": (data(rows(label="2")), "row 61"),
    "text in a numeric column": (data(rows(feature="high")), "row 61"),
    "not a number": (data(rows(feature="nan")), "row 61"),
    "infinite": (data(rows(feature="inf")), "row 61"),
    "too few records": (data(rows(count=10)), "records"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_ends_the_start_with_the_reason(alpha: Hospital, case: str) -> None:
    spoil, says = BAD_DATA[case]
    spoil(alpha)
    alpha.start()
    assert alpha.wait() == 78
    words = alpha.log.read_text()
    assert says in words
    assert "data.csv" in words
    assert "Traceback" not in words


def test_a_port_in_use_is_named(alpha: Hospital) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", alpha.port))
        taken.listen()
        alpha.start()
        assert alpha.wait() == 1
    words = alpha.log.read_text()
    assert f"/ip4/127.0.0.1/tcp/{alpha.port}" in words
    assert "listen.addresses" in words
    assert "Traceback" not in words


def test_a_key_that_others_can_read_ends_the_start(alpha: Hospital) -> None:
    (alpha.directory / "keys" / "identity.key").chmod(0o640)
    alpha.start()
    assert alpha.wait() == 78
    assert "chmod 600" in alpha.log.read_text()


def test_two_daemons_cannot_share_a_state_directory(alpha: Hospital) -> None:
    alpha.start()
    alpha.until("its status", lambda status: status.round.phase == "collecting")
    running = alpha.process
    alpha.start()
    assert alpha.wait() == 1
    assert "another daemon is using this state directory" in alpha.log.read_text()
    alpha.process = running


def test_state_of_another_federation_is_refused(short_tmp: Path) -> None:
    with Federation(short_tmp, ["alpha", "beta"]) as federation:
        alpha = federation.hospitals[0]
        alpha.start()
        alpha.until("its status", lambda status: status.round.phase == "collecting")
        alpha.send(signal.SIGTERM)
        assert alpha.wait() == 0
        federation.write_topology(federation={"name": "another"})
        alpha.start()
        assert alpha.wait() == 1
        assert "use another state directory" in alpha.log.read_text()


TASK_CODE = """
import torch
from torch.utils.data import TensorDataset
from p2pfed.training.task import Datasets

class Line:
    def __init__(self, options, data):
        pass
    def build_model(self):
        return torch.nn.Linear(WIDTH, 1)
    def datasets(self):
        records = TensorDataset(torch.ones(64, WIDTH), torch.ones(64, 1))
        return Datasets(training=records, holdout=records)
    def loss(self, model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    def metrics(self, model, batches):
        return {"mse": torch.stack([self.loss(model, batch) for batch in batches]).mean()}
"""


def test_a_neighbour_with_another_schema_is_refused_at_both_ends(short_tmp: Path) -> None:
    task = {"kind": "python", "class": "line:Line", "options": {"batch_size": 8}}
    with Federation(short_tmp, ["alpha", "beta"], task=task) as federation:
        for width, hospital in enumerate(federation.hospitals, start=2):
            code = TASK_CODE.replace("WIDTH", str(width))
            (hospital.directory / "line.py").write_text(code)
            hospital.write_site(task={"path": "."})
        federation.start()
        for hospital in federation.hospitals:
            status = hospital.until("the refusal", lambda s: s.neighbours[0].refusal is not None)
            assert "model schema differs" in (status.neighbours[0].refusal or "")


def test_a_task_that_raises_costs_its_round_and_not_the_daemon(short_tmp: Path) -> None:
    task = {"kind": "python", "class": "line:Line", "options": {"batch_size": 8}}
    broken = TASK_CODE.replace("WIDTH", "2").replace(
        "return torch.nn.functional",
        "raise ValueError('the moon is full')\n        return torch.nn",
    )
    with Federation(short_tmp, ["alpha", "beta"], task=task) as federation:
        alpha = federation.hospitals[0]
        (alpha.directory / "line.py").write_text(broken)
        alpha.write_site(task={"path": "."})
        alpha.start()
        status = alpha.until(
            "the trainer's error",
            lambda s: any("the moon is full" in line.problem for line in s.health),
        )
        assert not status.healthy
        alpha.send(signal.SIGTERM)
        assert alpha.wait() == 0
