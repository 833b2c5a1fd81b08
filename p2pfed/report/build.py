"""Builds the report of a site from what its files and its journal say."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from p2pfed.protocol.texts import printable
from p2pfed.report.document import (
    MAX_HISTORY_ROUNDS,
    MAX_LISTED,
    MAX_TEXT_CHARACTERS,
    CalibrationFigure,
    DataPart,
    DriftSignal,
    Equivocation,
    ExportedModel,
    HistoryRow,
    IntendedUse,
    IntervalEnds,
    Lineage,
    Metric,
    ModelDetails,
    ModelFigures,
    OtherSite,
    Overall,
    Participant,
    Privacy,
    PrivacyPart,
    Refusals,
    Report,
    Role,
    Rounds,
)
from p2pfed.report.limitations import limitations_of
from p2pfed.report.metric_names import direction
from p2pfed.report.records import RoundRecord, drifts_of
from p2pfed.tasks_catalogue import PERSONAL_PREFIX
from p2pfed.topology import Topology

FIGURE_DECIMALS = 4  # those beyond mean nothing
CHAIN_DOMAIN = b"p2pfed/1 report chain"


@dataclass(frozen=True, slots=True)
class LocalFigures:
    """Metrics of a model that the site trained on its own records alone, on the same hold-out."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, IntervalEnds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that a report is made of.

    :ivar federation_id: hex.
    :ivar records: of the finished rounds that are kept, the oldest first.
    :ivar minimum_records: below which this site does not train.
    :ivar privacy: of the ledger; None where no differential privacy is configured.
    :ivar other_sites: reports of other sites of the same federation.
    """

    site: str
    topology: Topology
    federation_id: str
    records: Sequence[RoundRecord]
    equivocations: Sequence[Equivocation] = ()
    exports: Sequence[ExportedModel] = ()
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    minimum_records: int = 2
    privacy: Privacy | None = None
    local: LocalFigures | None = None
    other_sites: Sequence[Report] = ()


def build_report(sources: Sources, written_at_seconds: int | None) -> Report:
    """The report; the same sources and date give the same bytes."""
    records = sources.records
    last = records[-1] if records else None
    metrics = _metrics(records)
    models = _models(sources, last)
    privacy = _privacy(sources)
    other_sites = tuple(_other_site(report) for report in sources.other_sites)
    drifts = drifts_of(list(records))
    return Report(
        written_at_seconds=written_at_seconds,
        model_details=_details(sources, last),
        intended_use=sources.intended_use,
        participants=_participants(sources),
        rounds=_rounds(sources),
        data=DataPart(
            training_records=last.training_records if last else None,
            holdout_records=last.holdout_records if last else None,
        ),
        metrics=metrics,
        calibration=_calibration(last),
        reliability=last.reliability[:MAX_LISTED] if last else (),
        models=models,
        drift=tuple(DriftSignal(**_rounded_fields(asdict(drift))) for drift in drifts)[:MAX_LISTED],
        history=tuple(_row(record) for record in thinned(records, MAX_HISTORY_ROUNDS)),
        refusals=_refusals(records),
        equivocations=tuple(sources.equivocations),
        privacy=privacy,
        lineage=Lineage(
            model=last.model if last else "",
            round=last.round if last else None,
            chain=chain_of(records),
            exports=tuple(sources.exports)[-MAX_LISTED:],
        ),
        other_sites=other_sites,
        overall=_overall(sources.site, metrics, other_sites),
        limitations=limitations_of(
            rounds=len(records),
            metrics=metrics,
            calibrated=bool(last and last.calibration),
            models={one.model for one in models},
            privacy=privacy,
            sites=len(sources.topology.names),
            sites_seen=1 + len(other_sites),
            topology_changed=bool(
                last and last.run.topology and last.run.topology != sources.topology.digest.hex()
            ),
        ),
    )


def thinned(records: Sequence[RoundRecord], most: int) -> list[RoundRecord]:
    """At most ``most`` of them, spread evenly, the first and the last among them."""
    if len(records) <= most:
        return list(records)
    step = (len(records) - 1) / (most - 1)
    return [records[round(at * step)] for at in range(most)]


def chain_of(records: Iterable[RoundRecord]) -> str:
    """The digest of ``Lineage.chain``; empty without a round."""
    chain = b""
    for record in records:
        hasher = hashlib.blake2b(CHAIN_DOMAIN + chain, digest_size=32)
        hasher.update(record.round.to_bytes(8) + record.model.encode())
        chain = hasher.digest()
    return chain.hex()


def _details(sources: Sources, last: RoundRecord | None) -> ModelDetails:
    topology, file = sources.topology, sources.topology.file
    run = last.run if last else RoundRecord(round=0).run
    rules = Counter(record.rule for record in sources.records)
    return ModelDetails(
        federation=file.federation.name,
        federation_id=sources.federation_id,
        site=sources.site,
        peer_id=topology.peer(sources.site).peer_id_text,
        task=file.task.kind,
        task_class=file.task.class_,
        task_options=_shown_options(dict(file.task.options)),
        seed=file.task.seed,
        parameters=run.parameters,
        model_schema=run.model_schema,
        model_digest=last.model if last else "",
        software=_text(run.software),
        torch=_text(run.torch),
        device=_text(run.device),
        topology_file=_text(str(topology.path)),
        topology_digest=topology.digest.hex(),
        topology_digest_of_last_round=run.topology,
        graph=file.graph.kind,
        sites=len(topology.names),
        local_steps=file.round.local_steps,
        rules=dict(sorted(rules.items())) or {file.aggregation.rule: 0},
        byzantine_neighbours=file.aggregation.byzantine_neighbours,
        codec=file.codec.name,
    )


def _shown_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of any task, as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_text(str(key)): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if isinstance(value, bool | int | float):
            return value
        return _text(str(value))

    return {key: plain(value) for key, value in options.items()}


def _participants(sources: Sources) -> tuple[Participant, ...]:
    topology, records = sources.topology, sources.records
    seen = {name for record in records for name in (*record.weights, *record.left_out)}
    former = sorted(seen - set(topology.names))
    quarantined = {one.site for one in sources.equivocations}
    refused = Counter(refusal.site for record in records for refusal in record.refusals)
    found = []
    for name in (*topology.names, *former):
        weights = [_weight(record, name, sources.site) for record in records]
        mixed = [
            record.round for record, weight in zip(records, weights, strict=True) if weight > 0.0
        ]
        found.append(
            Participant(
                name=_text(name),
                peer_id=topology.peer(name).peer_id_text if name in topology.names else "",
                role=_role(name, sources, seen),
                rounds_mixed=len(mixed),
                rounds_missed=sum(name in record.left_out for record in records),
                rounds_dropped=sum(name in record.dropped for record in records),
                first_round=mixed[0] if mixed else None,
                last_round=mixed[-1] if mixed else None,
                mean_weight=_rounded(sum(weights) / len(weights)) if weights else 0.0,
                last_weight=_rounded(weights[-1]) if weights else 0.0,
                refusals=refused[name],
                quarantined=name in quarantined,
            )
        )
    return tuple(found)


def _weight(record: RoundRecord, name: str, own_name: str) -> float:
    """The site's own is what its neighbours' leave."""
    if name == own_name:
        return max(0.0, 1.0 - sum(record.weights.values()))
    return record.weights.get(name, 0.0)


def _role(name: str, sources: Sources, seen: set[str]) -> Role:
    if name == sources.site:
        return "site"
    if name not in sources.topology.names:
        return "former neighbour"
    neighbours = sources.topology.all_neighbours(sources.site)
    return "neighbour" if name in neighbours or name in seen else "member"


def _rounds(sources: Sources) -> Rounds:
    records = sources.records
    degraded = [record.round for record in records if record.degraded]
    return Rounds(
        done=records[-1].round + 1 if records else 0,
        planned=sources.topology.file.round.rounds,
        kept=len(records),
        first=records[0].round if records else None,
        last=records[-1].round if records else None,
        degraded=len(degraded),
        degraded_rounds=tuple(degraded[-MAX_LISTED:]),
        local_only=sum(record.local_only for record in records),
        first_ended_at_seconds=records[0].at_seconds if records else 0,
        last_ended_at_seconds=records[-1].at_seconds if records else 0,
    )


def _metrics(records: Sequence[RoundRecord]) -> tuple[Metric, ...]:
    if not records:
        return ()
    last, previous = records[-1], records[-2] if len(records) > 1 else None
    found = []
    for name, value in sorted(last.after.items())[:MAX_LISTED]:
        better = direction(name)
        having = [record for record in records if name in record.after]
        best = None
        if better != "unknown":
            choose = max if better == "higher" else min
            best = choose(having, key=lambda record: record.after[name])
        found.append(
            Metric(
                name=_text(name),
                better=better,
                value=_rounded(value),
                interval=_rounded_ends(last.intervals.get(name)),
                before=_rounded_figure(last.before.get(name)),
                previous=_rounded_figure(previous.after.get(name)) if previous else None,
                best=_rounded(best.after[name]) if best else None,
                best_round=best.round if best else None,
            )
        )
    return tuple(found)


def _calibration(last: RoundRecord | None) -> tuple[CalibrationFigure, ...]:
    if last is None:
        return ()
    return tuple(
        CalibrationFigure(
            name=_text(name),
            value=_rounded(value),
            interval=_rounded_ends(last.intervals.get(name)),
        )
        for name, value in sorted(last.calibration.items())[:MAX_LISTED]
    )


def _models(sources: Sources, last: RoundRecord | None) -> tuple[ModelFigures, ...]:
    """The kinds of model that are known, in the order in which a reader compares them."""
    found = []
    if sources.local is not None:
        found.append(
            ModelFigures(
                model="local_only",
                metrics=_rounded_all(sources.local.metrics),
                intervals=_rounded_intervals(
                    {
                        name: ends
                        for name, ends in sources.local.intervals.items()
                        if name in sources.local.metrics
                    }
                ),
            )
        )
    if last is None:
        return tuple(found)
    if last.before:
        found.append(ModelFigures(model="trained", metrics=_shared(last.before), intervals={}))
    if last.after:
        found.append(
            ModelFigures(
                model="federated",
                metrics=_shared(last.after),
                intervals=_rounded_intervals(
                    {name: last.intervals[name] for name in last.after if name in last.intervals}
                ),
            )
        )
    personal = {
        name.removeprefix(PERSONAL_PREFIX): value
        for name, value in last.after.items()
        if name.startswith(PERSONAL_PREFIX)
    }
    if personal:
        intervals = {
            name.removeprefix(PERSONAL_PREFIX): ends
            for name, ends in last.intervals.items()
            if name.startswith(PERSONAL_PREFIX)
        }
        found.append(
            ModelFigures(
                model="personalised",
                metrics=_rounded_all(personal),
                intervals=_rounded_intervals(intervals),
            )
        )
    return tuple(found)


def _shared(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the model that is shared."""
    return _rounded_all(
        {name: value for name, value in metrics.items() if not name.startswith(PERSONAL_PREFIX)}
    )


def _row(record: RoundRecord) -> HistoryRow:
    return HistoryRow(
        round=record.round,
        ended_at_seconds=record.at_seconds,
        rule=record.rule,
        degraded=record.degraded,
        metrics=_rounded_all(record.after),
        intervals=_rounded_intervals(record.intervals),
        training_loss=_rounded_figure(record.training_loss),
        consensus_distance=_rounded_figure(record.consensus_distance),
        model=record.model,
    )


def _refusals(records: Sequence[RoundRecord]) -> Refusals:
    everything = [refusal for record in records for refusal in record.refusals]
    counts = Counter(refusal.kind for refusal in everything)
    return Refusals(counts=dict(sorted(counts.items())), latest=tuple(everything[-MAX_LISTED:]))


def _privacy(sources: Sources) -> PrivacyPart:
    minimum = max(sources.minimum_records, sources.topology.file.privacy.minimum_records)
    given = sources.privacy
    if given is None:
        statement = (
            "No differential privacy is configured. Records stay at the site and what is sent is "
            "encrypted and signed, but a neighbour sees the site's model change, and can learn "
            "something of the records from it."
        )
    else:
        statement = (
            f"{given.mechanism}: epsilon {given.epsilon_spent:.3f} of {given.epsilon_limit:g} is "
            f"spent at delta {given.delta:g}, {given.epsilon_left:.3f} is left, after "
            f"{given.rounds_charged} charged rounds; what is hidden is one {given.unit}."
        )
        if given.rounds_charged_since:
            statement += f" {given.rounds_charged_since} further rounds are charged since."
        if not given.configured:
            statement += " The present settings train without it."
    return PrivacyPart(statement=statement, accounted=given, minimum_records=minimum)


def _other_site(report: Report) -> OtherSite:
    federated = next((one for one in report.models if one.model == "federated"), None)
    local = next((one for one in report.models if one.model == "local_only"), None)
    return OtherSite(
        site=_text(report.model_details.site),
        rounds=report.rounds.done,
        model_digest=_text(report.model_details.model_digest),
        holdout_records=report.data.holdout_records,
        metrics=dict(federated.metrics) if federated else {},
        intervals=dict(federated.intervals) if federated else {},
        local_only=dict(local.metrics) if local else {},
    )


def _overall(
    site: str, metrics: Sequence[Metric], others: Sequence[OtherSite]
) -> tuple[Overall, ...]:
    """Metrics that at least two sites have."""
    found = []
    for metric in metrics:
        values = {site: metric.value} | {
            other.site: other.metrics[metric.name]
            for other in others
            if metric.name in other.metrics
        }
        if len(values) < 2:
            continue
        worst = None
        if metric.better != "unknown":
            choose = min if metric.better == "higher" else max
            worst = choose(values, key=values.__getitem__)
        found.append(
            Overall(
                metric=metric.name,
                sites=len(values),
                mean=_rounded(sum(values.values()) / len(values)),
                worst=values[worst] if worst else None,
                worst_site=worst,
            )
        )
    return tuple(found)


def _text(text: str) -> str:
    return printable(text, MAX_TEXT_CHARACTERS)


def _rounded(value: float) -> float:
    return round(value, FIGURE_DECIMALS)


def _rounded_figure(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded_ends(ends: IntervalEnds | None) -> IntervalEnds | None:
    return None if ends is None else (_rounded(ends[0]), _rounded(ends[1]))


def _rounded_all(values: Mapping[str, float]) -> dict[str, float]:
    return {_text(name): _rounded(value) for name, value in sorted(values.items())}


def _rounded_intervals(values: Mapping[str, IntervalEnds]) -> dict[str, IntervalEnds]:
    return {_text(name): (_rounded(e[0]), _rounded(e[1])) for name, e in sorted(values.items())}


def _rounded_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, float) else value
        for name, value in fields.items()
    }
