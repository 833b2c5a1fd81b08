"""Health: what of a status an operator should do something about, and what to do."""

from p2pfed.daemon.status import HealthLine, Status

ROUND_TRIP_WARNING_SECONDS = 2.0
BEHIND_WARNING_ROUNDS = 3
LOW_BUDGET_SHARE = 0.1
BUSY_SCORE = 3  # of local health: a lag of a second and a half at once, or shorter ones in a row


def health_of(status: Status) -> list[HealthLine]:
    """Derive the health lines from the rest of a status, errors first."""
    lines = _own(status) + _privacy(status) + _figures(status) + _neighbours(status)
    return sorted(lines, key=lambda line: line.severity != "error")


def _own(status: Status) -> list[HealthLine]:
    lines: list[HealthLine] = []
    if status.trainer.state in ("failed", "restarting"):
        reason = status.trainer.last_error or "no reason known"
        lines.append(
            HealthLine("error", f"the trainer is {status.trainer.state}: {reason}", "p2pfed log")
        )
    elif status.trainer.stands_still:
        lines.append(
            HealthLine(
                "error",
                f"the trainer stands still: process {status.trainer.pid} has said nothing for "
                f"{status.trainer.silent_seconds:.0f} s, much longer than is usual; end it with "
                f"kill -9 {status.trainer.pid}, and another is started",
                "p2pfed log",
            )
        )
    elif status.trainer.last_error and status.round.phase == "training":
        lines.append(
            HealthLine("error", f"training fails: {status.trainer.last_error}", "p2pfed log")
        )
    if status.storage_error is not None:
        lines.append(
            HealthLine(
                "error",
                f"the state cannot be written, so no round is done: {status.storage_error}; it is "
                "tried again until it can",
                "p2pfed log",
            )
        )
    waiting_too_long = (
        status.round.phase == "collecting"
        and status.round.deadline_in_seconds is not None
        and status.round.deadline_in_seconds < 0
    )
    if waiting_too_long:
        lines.append(
            HealthLine(
                "error",
                f"round {status.round.number} lacks its quorum: {status.round.delivered} of "
                f"{status.round.expected} neighbours delivered",
                "p2pfed peers",
            )
        )
    if status.round.phase == "asking":
        lines.append(
            HealthLine(
                "warning",
                "the state was restored; this site asks its neighbours which rounds it has signed",
                "p2pfed peers",
            )
        )
    own = status.local_health
    if own.score >= BUSY_SCORE and own.lag_seconds > 0.0:
        lines.append(
            HealthLine(
                "warning",
                f"this machine is too busy: the daemon stood still for {own.lag_seconds:.1f} s, so "
                "it gives its neighbours more time; lower training.threads, or give it more "
                "processors",
                "p2pfed log",
            )
        )
    if status.round.phase in ("joining", "adopting"):
        lines.append(
            HealthLine(
                "warning",
                "this site was away for many rounds; it awaits its neighbours' models",
                "p2pfed peers",
            )
        )
    if status.round.degraded:
        lines.append(
            HealthLine("warning", "the last round closed without every neighbour", "p2pfed peers")
        )
    if status.totals.deltas_rejected:
        lines.append(
            HealthLine(
                "warning",
                f"{status.totals.deltas_rejected} deltas did not keep what their header promised",
                "p2pfed log",
            )
        )
    return lines


def _figures(status: Status) -> list[HealthLine]:
    lines = [
        HealthLine(
            "warning",
            f"{drift.metric} fell beyond noise: {drift.best:.3f} at round {drift.best_round}, "
            f"{drift.now:.3f} since round {drift.since_round}; look for a change in the data of "
            "this site, or for a neighbour that joined or changed about then",
            "p2pfed report",
        )
        for drift in status.drift
        if drift.alarming
    ]
    lines += [
        HealthLine(
            "warning",
            f"metrics do not reach {target}: {reason}; rounds go on without",
            "p2pfed log",
        )
        for target, reason in sorted(status.export_errors.items())
    ]
    return lines


def _privacy(status: Status) -> list[HealthLine]:
    privacy = status.privacy
    if privacy is None:
        return []
    if privacy.ledger_damaged:
        return [
            HealthLine(
                "error",
                f"the privacy ledger is damaged, so nothing is trained: {privacy.stopped}",
                "p2pfed log",
            )
        ]
    if privacy.stopped is not None:
        return [
            HealthLine(
                "warning",
                f"the privacy budget is used up; this site trains no more and goes on "
                f"aggregating: {privacy.stopped}",
                "p2pfed status",
            )
        ]
    if privacy.epsilon_left < LOW_BUDGET_SHARE * privacy.epsilon_budget:
        return [
            HealthLine(
                "warning",
                f"the privacy budget is nearly used up: epsilon {privacy.epsilon_left:.3g} of "
                f"{privacy.epsilon_budget:g} is left",
                "p2pfed status",
            )
        ]
    return []


def _neighbours(status: Status) -> list[HealthLine]:
    lines: list[HealthLine] = []
    for neighbour in status.neighbours:
        name = neighbour.name
        if neighbour.quarantined:
            lines.append(
                HealthLine(
                    "error",
                    f"{name} signed two different deltas for one round and is quarantined",
                    "p2pfed log",
                )
            )
        elif neighbour.refusal is not None:
            lines.append(HealthLine("error", f"{name}: {neighbour.refusal}", "p2pfed config check"))
        elif neighbour.state != "connected":
            reason = f": {neighbour.last_error}" if neighbour.last_error else ""
            if neighbour.vouched_by:
                reason += f"; heard by {', '.join(neighbour.vouched_by)}, so rounds wait for it"
            lines.append(
                HealthLine("warning", f"{name} is not connected{reason}", f"p2pfed ping {name}")
            )
        elif neighbour.liveness == "unreachable":
            lines.append(
                HealthLine(
                    "warning",
                    f"{name} is silent on a link that is up; rounds do not wait for it",
                    f"p2pfed ping {name}",
                )
            )
        elif (neighbour.round_trip_seconds or 0.0) > ROUND_TRIP_WARNING_SECONDS:
            lines.append(
                HealthLine(
                    "warning",
                    f"{name} answers slowly, {neighbour.round_trip_seconds:.1f} s there and back",
                    f"p2pfed ping {name}",
                )
            )
        elif (
            neighbour.round is not None
            and status.round.number - neighbour.round >= BEHIND_WARNING_ROUNDS
        ):
            behind = status.round.number - neighbour.round
            lines.append(
                HealthLine("warning", f"{name} is {behind} rounds behind", f"p2pfed ping {name}")
            )
    connected = [n for n in status.neighbours if n.state == "connected"]
    if status.neighbours and not connected:
        lines.append(
            HealthLine("error", "no neighbour is connected; this site is alone", "p2pfed peers")
        )
    return lines
