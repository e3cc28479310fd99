"""Results as tables: what is compared, what is missing, and what follows for each claim. Knows no file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evidence.cells import Plan, Result, Results
from evidence.claims import Claim, Expectation, Variant
from evidence.data import DataSet
from evidence.statistics import Array, Estimate, estimate, paired_difference, verdict


@dataclass(frozen=True)
class Measured:
    """The finished seeds of a variant on a data set."""

    variant: Variant
    correct: dict[int, Array]  # by seed: (videos of all folds), bool
    shuffled: dict[int, Array]  # the same model with the frames in another order
    right: Array | None  # (videos of all folds): their classes; None: no seed is finished
    results: tuple[Result, ...]
    missing: int  # cells

    @cached_property
    def accuracy(self) -> Estimate | None:
        return estimate(np.stack(list(self.correct.values()))) if self.correct else None

    @cached_property
    def accuracy_shuffled(self) -> Estimate | None:
        return estimate(np.stack(list(self.shuffled.values()))) if self.shuffled else None

    @property
    def seconds(self) -> float:
        """Of a seed, with all folds."""
        return sum(result.seconds for result in self.results) / max(len(self.correct), 1)

    def better_than(self, other: Measured) -> Estimate | None:
        """The difference over the seeds that both have."""
        seeds = [seed for seed in self.correct if seed in other.correct]
        if not seeds or self is other:
            return None
        return paired_difference(*(np.stack([one.correct[seed] for seed in seeds]) for one in (self, other)))


@dataclass(frozen=True)
class Finding:
    """What the intervals say of one expectation on one data set."""

    expectation: Expectation
    data: str
    difference: Estimate | None  # better - worse; None: cells are missing

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "missing"
        return verdict(self.difference, self.expectation.margin)

    def __str__(self) -> str:
        margin = self.expectation.margin
        what = (
            f"{self.expectation.better} {'at least as good as' if margin else 'better than'} {self.expectation.worse}"
        )
        assert self.difference is not None
        within = f", within {100 * margin:.0f} points" if margin else ""
        return f"{what} ({points(self.difference)}{within})"


@dataclass(frozen=True)
class Table:
    """One claim on one data set."""

    claim: Claim
    data: DataSet
    rows: tuple[Measured, ...]
    chance: float | None  # share of the most frequent class of the test; None: nothing is measured

    @property
    def is_empty(self) -> bool:
        """Whether nothing is measured that the claim compares, or nothing at all."""
        if found := self.findings:
            return all(finding.difference is None for finding in found)
        return all(row.accuracy is None for row in self.rows)

    @property
    def reference(self) -> Measured:
        return self.row(self.claim.reference)

    @property
    def missing(self) -> int:
        return sum(row.missing for row in self.rows)

    @property
    def findings(self) -> list[Finding]:
        return [
            Finding(one, self.data.name, self.row(one.better).better_than(self.row(one.worse)))
            for one in self.claim.expected
            if one.kind == self.data.kind
        ]

    def row(self, name: str) -> Measured:
        return next(row for row in self.rows if row.variant.name == name)


def make_tables(plan: Plan, results: Results) -> list[Table]:
    """Of all claims and data sets of a plan, out of the results that are there."""
    return [_table(claim, data, plan, results) for claim, data in plan.tables()]


def _table(claim: Claim, data: DataSet, plan: Plan, results: Results) -> Table:
    rows = tuple(_measured(variant, data, plan, results) for variant in claim.rows)
    right = next((row.right for row in rows if row.right is not None), None)
    chance = None if right is None else np.bincount(right).max() / len(right)
    return Table(claim, data, rows, chance)


def _measured(variant: Variant, data: DataSet, plan: Plan, results: Results) -> Measured:
    correct, shuffled, used, missing = {}, {}, [], 0
    right: Array | None = None
    for seed, cells in plan.cells(variant, data).items():
        found = [results.find(cell) for cell in cells]
        there = [result for result in found if result is not None]
        missing += len(found) - len(there)
        if len(there) == len(found):  # every video is tested
            correct[seed] = np.concatenate([result.correct for result in there])
            shuffled[seed] = np.concatenate([result.correct_shuffled for result in there])
            right = np.concatenate([np.array(result.right) for result in there])
            used += there
    return Measured(variant, correct, shuffled, right, tuple(used), missing)


def conclusion(tables: Sequence[Table]) -> str:
    """A sentence or more on a claim: what its intervals say, each verdict with the comparisons that have it."""
    found = [finding for table in tables for finding in table.findings]
    parts = []
    for word in ("contradicted", "confirmed", "not seen at this scale"):
        some = [f"{finding.data}: {finding}" for finding in found if finding.verdict == word]
        if some:
            parts.append(f"{word.capitalize()}: {'; '.join(some)}.")
    if missing := sum(finding.difference is None for finding in found):
        parts.append(f"{missing} of {len(found)} comparisons are not measured.")
    return " ".join(parts) or "Nothing is expected of these data sets; see the table."


def percent(value: Estimate | None) -> str:
    """An accuracy with its interval, in percent."""
    return "" if value is None else f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Estimate | None) -> str:
    """A difference with its interval, in percentage points."""
    return "" if value is None else f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
