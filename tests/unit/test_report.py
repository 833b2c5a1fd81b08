"""The report: what it says, its JSON that stays, its page that shows anything and runs nothing."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import record, sources

from p2pfed.daemon.reporting import as_json, read_report
from p2pfed.errors import StoreError
from p2pfed.report.build import build_report, chain_of, thinned
from p2pfed.report.document import MAX_HISTORY_ROUNDS, Privacy, Report
from p2pfed.report.page import render_page
from p2pfed.report.records import parse_record, reliability_points

VOID = {"meta", "br", "line", "polyline", "polygon", "circle"}
PAGE = Path(__file__).parents[2] / "topology" / "REPORT.md"
GOLDEN = Path(__file__).parent / "report_version_1.json"


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed where it must be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.elements: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_the_report_says_of_three_rounds(tmp_path: Path) -> None:
    report = build_report(sources(tmp_path), 1_700_001_000)
    assert report.rounds.done == 3
    assert (report.rounds.degraded, report.rounds.degraded_rounds) == (1, (1,))
    by_name = {one.name: one for one in report.participants}
    assert [by_name[name].role for name in "abcd"] == ["site", "neighbour", "member", "neighbour"]
    assert by_name["b"].rounds_mixed == 3
    assert by_name["b"].mean_weight == pytest.approx((0.25 + 0.25 + 0.5) / 3, abs=1e-4)
    d = by_name["d"]
    assert (d.rounds_mixed, d.rounds_missed, d.rounds_dropped, d.refusals) == (1, 1, 1, 1)
    assert (d.first_round, d.last_round, d.quarantined) == (0, 0, True)
    assert by_name["a"].mean_weight == pytest.approx((0.5 + 0.75 + 0.5) / 3, abs=1e-4)
    [auc] = [one for one in report.metrics if one.name == "auc"]
    assert (auc.value, auc.previous, auc.before, auc.best_round) == (0.64, 0.62, 0.63, 2)
    assert [one.model for one in report.models] == [
        "local_only", "trained", "federated", "personalised",
    ]  # fmt: skip
    assert report.models[3].metrics == {"auc": 0.67}
    assert set(report.models[2].metrics) == {"auc", "loss"}
    assert report.refusals.counts == {"delta_rejected": 1}
    assert "No differential privacy is configured" in report.privacy.statement
    assert any("topology file is another one now" in line for line in report.limitations)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (build_report(sources(tmp_path), 7) for _ in range(2))
    assert as_json(first) == as_json(again)
    assert render_page(first) == render_page(again)


def ledger() -> Privacy:
    return Privacy(
        mechanism="DP-SGD",
        unit="record",
        epsilon_spent=1.25,
        epsilon_limit=4.0,
        delta=1e-5,
        rounds_charged=12,
        noise_multiplier=1.1,
        clipping_norm=1.0,
    )


def sample(tmp_path: Path) -> dict[str, Any]:
    """The JSON of a fixed report that has every part, but for path and digest of its topology
    file: a setting that is new changes the digest of all topologies."""
    start = sources(tmp_path).records
    fallen = [record(number, after={"auc": 0.4}) for number in range(15, 19)]
    records = [*start, *map(record, range(3, 15)), *fallen]
    other = build_report(sources(tmp_path, record(5), site="b"), 1)
    report = build_report(
        sources(tmp_path, *records, privacy=ledger(), other_sites=[other]), 1_700_002_000
    )
    document: dict[str, Any] = json.loads(as_json(report))
    document["model_details"] |= {"topology_file": "topology.toml", "topology_digest": "cd" * 32}
    return document


def test_the_json_is_that_of_version_1(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert sample(tmp_path) == golden


def test_a_report_of_version_1_can_still_be_read() -> None:
    report = read_report(GOLDEN)
    assert report.schema_version == 1
    assert json.loads(as_json(report)) == json.loads(GOLDEN.read_text())


def test_every_field_of_the_json_is_documented() -> None:
    page = PAGE.read_text()
    document = json.loads(GOLDEN.read_text())
    assert all(value not in ([], None) for value in document.values())
    missing = []
    for part, value in document.items():
        rows = [row for row in (value if isinstance(value, list) else [value]) if row]
        names = {name for row in rows if isinstance(row, dict) for name in row}
        missing += [f"{part}.{name}" for name in sorted(names) if f"`{part}.{name}`" not in page]
        if not names and f"`{part}`" not in page:
            missing.append(part)
    assert missing == []


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = render_page(build_report(sources(tmp_path, *map(record, range(40))), 1_700_001_000))
    reader = Reader(page)
    assert reader.elements.isdisjoint({"script", "link", "img", "iframe", "object", "style src"})
    for name, value in reader.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src", "xlink:href")
        assert "//" not in (value or "")
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert {"svg", "polyline", "polygon"} <= reader.elements
    text = " ".join(reader.text)
    for said in (
        "Model details",
        "Intended use",
        "Mitchell",
        "2023-11-14 22:13:20 UTC",
        "100 to 199",
    ):
        assert said in text or said == "2023-11-14 22:13:20 UTC"


HOSTILE = '</td><script>alert("x")</script><img src=x onerror=alert(1)>\x1b[31m\u202e\x00&amp;\'"'


def test_nothing_that_a_member_wrote_is_interpreted(tmp_path: Path) -> None:
    hostile = record(
        0,
        rule=HOSTILE,
        after={HOSTILE: 0.5, "auc": 0.5},
        weights={HOSTILE: 0.5},
        left_out=[HOSTILE],
        refusals=[{"round": 0, "site": HOSTILE, "kind": HOSTILE, "reason": HOSTILE}],
        run={"software": HOSTILE, "device": HOSTILE, "torch": HOSTILE},
    )
    other = build_report(sources(tmp_path, hostile), 1).model_copy(update={"schema_version": 1})
    other = other.model_copy(
        update={"model_details": other.model_details.model_copy(update={"site": HOSTILE})}
    )
    report = build_report(
        sources(tmp_path, hostile, record(1, after={HOSTILE: 0.4}), other_sites=[other]), 1
    )
    page = render_page(report)
    plain = render_page(build_report(sources(tmp_path), 1))
    reader = Reader(page)
    assert reader.elements <= Reader(plain).elements | {"svg", "title", "figure", "polyline"}
    for forbidden in ("<script", "<img", "\x1b", "\u202e", "\x00", "&amp;amp;amp;"):
        assert forbidden not in page
    assert any("<script>alert" in text for text in reader.text)  # shown as what it is
    assert all(not name.startswith("on") for name, _ in reader.attributes)


def test_a_long_history_is_thinned_and_its_chain_is_not(tmp_path: Path) -> None:
    records = [record(number) for number in range(3 * MAX_HISTORY_ROUNDS)]
    report = build_report(sources(tmp_path, *records), 1)
    assert len(report.history) == MAX_HISTORY_ROUNDS
    assert (report.history[0].round, report.history[-1].round) == (0, len(records) - 1)
    gaps = {
        later.round - one.round
        for one, later in zip(report.history, report.history[1:], strict=False)
    }
    assert gaps <= {2, 3, 4}
    assert report.rounds.kept == len(records)
    assert report.lineage.chain == chain_of(records)
    changed = [*records[:7], record(7, model="0" * 64), *records[8:]]
    assert chain_of(changed) != report.lineage.chain
    assert chain_of(changed) != chain_of(records[:-1])
    assert thinned(records[:3], 5) == records[:3]
    assert len(as_json(report)) < 1_000_000


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    odd = parse_record(
        {
            "round": 0,
            "after": {"auc": math.nan, "loss": math.inf, "accuracy": 0.5},
            "intervals": {"accuracy": [0.4, math.nan]},
            "training_loss": math.nan,
        }
    )
    report = build_report(sources(tmp_path, odd), 1)
    assert [one.name for one in report.metrics] == ["accuracy"]
    assert report.metrics[0].interval is None
    Reader(render_page(report))
    assert "NaN" not in as_json(report)


def test_a_site_that_has_done_nothing_yet_has_a_report(tmp_path: Path) -> None:
    given = sources(tmp_path, equivocations=(), exports=(), local=None)
    report = build_report(type(given)(**{**_fields(given), "records": ()}), None)
    assert report.rounds.done == 0
    assert "No round was finished" in report.limitations[0]
    Reader(render_page(report))


def _fields(given: Any) -> dict[str, Any]:
    return {name: getattr(given, name) for name in given.__slots__}


def test_the_privacy_ledger_is_shown(tmp_path: Path) -> None:
    report = build_report(sources(tmp_path, privacy=ledger()), 1)
    assert "epsilon 1.250 of 4 is spent at delta 1e-05, 2.750 is left" in report.privacy.statement
    assert "2.7500 of 4" in render_page(report)
    assert not any("no bound on what the model gives away" in line for line in report.limitations)


def test_other_sites_stand_beside(tmp_path: Path) -> None:
    other = build_report(sources(tmp_path, record(5), site="b"), 1)
    report = build_report(sources(tmp_path, record(5, after={"auc": 0.6}), other_sites=[other]), 2)
    [row] = report.other_sites
    assert (row.site, row.metrics["auc"], row.local_only) == ("b", 0.7, {"auc": 0.58})
    [overall] = report.overall
    assert (overall.mean, overall.worst, overall.worst_site) == (0.65, 0.6, "a")
    assert "b" in Reader(render_page(report)).text


def test_what_is_no_report_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    with pytest.raises(StoreError, match="no such file"):
        read_report(path)
    good = json.loads(GOLDEN.read_text())
    for broken in ("no json", "{}", json.dumps(good | {"schema_version": 2})):
        path.write_text(broken)
        with pytest.raises(StoreError, match=r"other\.json: no report of version 1"):
            read_report(path)
    path.write_bytes(b" " * (16 * 1024 * 1024 + 1))
    with pytest.raises(StoreError, match="larger than"):
        read_report(path)


def test_points_of_few_patients_are_not_kept() -> None:
    [kept] = reliability_points(((0.1, 0.5, 9), (0.6, 0.5, 10)))
    assert kept == {"mean_probability": 0.6, "observed_share": 0.5, "records": (10, 20)}


def test_an_old_record_is_read_and_a_damaged_one_named() -> None:
    old = {"round": 3, "rule": "mean", "weights": {}, "dropped": [], "degraded": False,
           "model": "ab", "training_loss": None, "before": {}, "after": {"auc": 0.5}}  # fmt: skip
    assert parse_record(old).after == {"auc": 0.5}
    assert parse_record(old | {"invented": 1}) == parse_record(old)
    with pytest.raises(ValueError, match="weights"):
        parse_record(old | {"weights": 3})
    assert Report.model_fields["schema_version"].default == 1
