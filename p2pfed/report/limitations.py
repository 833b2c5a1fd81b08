"""What a report does not show: said in it, each where it holds."""

from collections.abc import Sequence

from p2pfed.report.document import Metric, PrivacyPart


def limitations_of(
    *,
    rounds: int,
    metrics: Sequence[Metric],
    calibrated: bool,
    models: set[str],
    privacy: PrivacyPart,
    sites: int,
    sites_seen: int,
    topology_changed: bool,
) -> tuple[str, ...]:
    """Sentences for the report's last part.

    :param rounds: finished rounds that are known.
    :param models: kinds of model that are compared.
    :param sites_seen: sites whose figures the report has, of ``sites``.
    """
    found = []
    if rounds == 0:
        found.append("No round was finished: there is no trained model to report on.")
    if metrics:
        found.append(
            "The figures are of this site's hold-out. Its records are patients of the same "
            "hospital as those that were trained on: they say little of patients elsewhere."
        )
        found.append(
            "The same hold-out was looked at in every round. A model or a setting that was chosen "
            "by these figures looks better here than it is."
        )
    without = [metric.name for metric in metrics if metric.interval is None]
    if without:
        found.append(
            f"No confidence interval is known for: {', '.join(without)}. A task that offers its "
            "predictions gets one."
        )
    if metrics and not calibrated:
        found.append(
            "The calibration is not known: the task has not two classes, or does not offer its "
            "predictions."
        )
    if "local_only" not in models:
        found.append(
            "What the site would reach alone is not known; p2pfed report --with-local trains it."
        )
    found.append(
        "What training on all records in one place would reach is not known: no site has them."
    )
    if sites_seen < sites:
        found.append(
            f"Figures of {sites_seen} of {sites} sites are in this report; the others' are given "
            "with --site, from the reports that those sites write."
        )
    if privacy.accounted is None:
        found.append("Without differential privacy there is no bound on what the model gives away.")
    else:
        found.append(
            "The privacy budget covers the training records. The hold-out's figures in this report "
            "are exact and are not part of it, nor is a model trained with --with-local."
        )
    if topology_changed:
        found.append(
            "The topology file is another one now than in the last round; the graph and the rule "
            "above are the present file's, the rounds' own rules stand with them."
        )
    found.append(
        "No figure is broken down by age, sex or other groups of patients: evaluate the exported "
        "model on each group's records with p2pfed evaluate."
    )
    return tuple(found)
