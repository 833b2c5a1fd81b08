"""The risk of an event over time, from records that may end without it: Cox regression.

Cox, Regression Models and Life-Tables, Journal of the Royal Statistical Society B 34 (1972). A
record's score is its log hazard over the baseline; only differences between scores mean anything.
Ties are Efron's (The Efficiency of Cox's Likelihood Function for Censored Data, Journal of the
American Statistical Association 72, 1977). With E the events, R(t) the records followed to t or
longer, D(t) the events at t, and l = 0, 1, ... counting the events of one t in any order,

    loss = -1/|E| sum over E of s_i - log( sum over R(t_i) of exp s - l_i/|D(t_i)| sum over
           D(t_i) of exp s )

In training R(t) is of the batch alone, as in Kvamme, Borgan and Scheel, Time-to-Event Prediction
with Neural Networks and Cox Regression (2019): a batch as large as the site's table gives the
whole likelihood of that site.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from p2pfed.training.tasks.tabular.columns import Fault, missing_cells, numbers
from p2pfed.training.tasks.tabular.targets.target import (
    EncodedLabels,
    Figures,
    Labels,
    missing_label,
    numeric_label,
)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Survival:
    """Labels, shape (n, 2), are time and event; scores are log hazards."""

    time: str
    event: str
    outputs: int = 1
    class_count: int = 0
    bias: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.time, self.event)

    def encode(self, cells: "pd.DataFrame") -> EncodedLabels:
        missing = missing_cells(cells[self.time])
        times, _ = numbers(cells[self.time], missing)
        fits, time_faults = numeric_label(missing, times)
        negative = fits & (times < 0)
        time_faults.append(Fault("is below 0", "time starts when a record is followed", negative))

        missing = missing_cells(cells[self.event])
        events, unreadable = numbers(cells[self.event], missing)
        other = unreadable | (~missing & ~np.isin(events, (0.0, 1.0)))
        event_faults = [
            missing_label(missing),
            Fault("is neither 0 nor 1", "write 1 for the event, 0 for none so far", other),
        ]
        labels = np.stack([np.where(fits, times, 0.0), events], axis=1).astype(np.float32)
        return EncodedLabels(
            labels,
            tuple((self.time, fault) for fault in time_faults)
            + tuple((self.event, fault) for fault in event_faults),
        )

    def lacks(self, labels: Labels) -> tuple[str, str] | None:
        if (labels[:, 1] == 1).any():
            return None
        return (
            f"none of {len(labels)} records has the event; there is nothing to learn from",
            f"check the column {self.event!r}, or that the table is complete",
        )

    def strata(self, labels: Labels) -> Figures:
        return labels[:, 1].astype(np.float64)

    def loss(
        self,
        scores: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,  # noqa: ARG002 - there are no classes
    ) -> torch.Tensor:
        return partial_likelihood_loss(scores[:, 0], labels[:, 0], labels[:, 1])

    def metrics(self, labels: Figures, scores: Figures) -> Mapping[str, float]:
        return survival_metrics(labels[:, 0], labels[:, 1], scores)


def partial_likelihood_loss(
    scores: torch.Tensor, times: torch.Tensor, events: torch.Tensor
) -> torch.Tensor:
    """Negative log partial likelihood per event, a scalar; see the module's text.

    Takes memory as the batch times its events. Without an event there is no likelihood: the loss
    is 0, and so is its gradient.

    :param scores: shape (B,), log hazards; so have ``times`` and ``events`` (0 or 1).
    """
    ended = events > 0  # (B,)
    if not ended.any():
        return (scores * 0.0).sum()
    own_times, own_scores = times[ended], scores[ended]  # (E,)
    followed = times[None, :] >= own_times[:, None]  # (E, B)
    tied = own_times[None, :] == own_times[:, None]  # (E, E)
    at_risk = _masked_log_sum(scores, followed)  # (E,)
    among_tied = _masked_log_sum(own_scores, tied)  # (E,)
    tied_count = tied.sum(dim=1, dtype=scores.dtype)
    earlier = torch.tril(tied, diagonal=-1).sum(dim=1, dtype=scores.dtype)  # the formula's l
    share = earlier / tied_count  # in [0, 1)
    # log(risk - share * tied), from logarithms; tied <= risk, so what is subtracted is below 1.
    excess = (among_tied - at_risk).clamp(max=0.0)
    return (at_risk + torch.log1p(-share * excess.exp()) - own_scores).mean()


def _masked_log_sum(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores[None, :].masked_fill(~mask, -math.inf).logsumexp(dim=1)


def survival_metrics(times: Figures, events: Figures, scores: Figures) -> dict[str, float]:
    """``c_index`` and ``loss``, the negative log partial likelihood per event.

    Without an event neither is defined; without a pair that can be compared there is no c-index.

    :param times: shape (n,); so have ``events`` (0 or 1) and ``scores``.
    """
    metrics = {}
    if events.any():
        metrics["loss"] = partial_likelihood(times, events, scores)
        index = concordance_index(times, events, scores)
        if index is not None:
            metrics["c_index"] = index
    return metrics


def partial_likelihood(times: Figures, events: Figures, scores: Figures) -> float:
    """What :func:`partial_likelihood_loss` gives, of any number of records: sorts them.

    :raises ValueError: there is no event.
    """
    if not events.any():
        raise ValueError("a partial likelihood needs an event")
    order = np.argsort(-times, kind="stable")
    followed = np.logaddexp.accumulate(scores[order])  # over the records so far, longest first
    ended = np.flatnonzero(events[order] > 0)
    own_times, own_scores = times[order][ended], scores[order][ended]
    last = np.searchsorted(-times[order], -own_times, side="right") - 1
    at_risk = followed[last]

    starts = np.flatnonzero(np.r_[True, own_times[1:] != own_times[:-1]])
    counts = np.diff(np.r_[starts, own_times.size])
    among_tied = np.repeat(np.logaddexp.reduceat(own_scores, starts), counts)
    share = (np.arange(own_times.size) - np.repeat(starts, counts)) / np.repeat(counts, counts)
    excess = np.minimum(among_tied - at_risk, 0.0)
    return float(np.mean(at_risk + np.log1p(-share * np.exp(excess)) - own_scores))


def concordance_index(times: Figures, events: Figures, scores: Figures) -> float | None:
    """Harrell's c: of the pairs of which it is known who had the event first, the share in which
    that record has the higher score; equal scores count half.

    Harrell, Lee and Mark, Multivariable Prognostic Models, Statistics in Medicine 15 (1996). A
    record with the event is compared with every one followed longer, and with those followed as
    long without it; two events at one time are not compared.

    :param times: shape (n,); so have ``events`` (0 or 1) and ``scores``.
    :returns: in [0, 1]; None where no pair can be compared.
    """
    # Longest first, and of equal times those without the event first: a record with the event is
    # compared with all that stand before the first event of its time.
    order = np.lexsort((events, -times))
    ended = np.flatnonzero(events[order] > 0)
    own = times[order][ended]
    starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]][: ended.size])
    counts = np.diff(np.r_[starts, ended.size])
    before = np.repeat(ended[starts], counts)
    pairs = int(before.sum())
    if not pairs:
        return None
    _, ranks = np.unique(scores[order], return_inverse=True)
    lower, equal = _counted_before(ranks, before, ranks[ended])
    return float((lower.sum() + equal.sum() / 2) / pairs)


def _counted_before(
    values: Integers, ends: Integers, queries: Integers
) -> tuple[Integers, Integers]:
    """For each query, how many of ``values[:end]`` are below it, and how many equal it.

    A wavelet matrix (Claude, Navarro and Ordóñez, 2015), walked by all queries at once: time and
    memory as n times the bits of the largest value, where comparing all pairs takes n squared.

    :param values: shape (n,), not negative; ``ends`` and ``queries`` have shape (m,).
    """
    first = np.zeros_like(ends)
    end = ends.copy()
    lower = np.zeros_like(ends)
    for bit in reversed(range(int(values.max(initial=0)).bit_length())):
        high = (values >> bit) & 1
        zeros = np.r_[0, np.cumsum(1 - high)]  # (n + 1,), how many have the bit clear so far
        is_high = ((queries >> bit) & 1) == 1
        lower += np.where(is_high, zeros[end] - zeros[first], 0)
        first = np.where(is_high, zeros[-1] + first - zeros[first], zeros[first])
        end = np.where(is_high, zeros[-1] + end - zeros[end], zeros[end])
        values = np.concatenate([values[high == 0], values[high == 1]])
    return lower, end - first
