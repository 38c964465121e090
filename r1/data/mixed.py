"""Demonstrations of several sources in given shares."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from r1.data.collate import TraceExample
from r1.data.traces import TraceDataset
from r1.types import Trace


class MixedTraces(TraceDataset):
    """Several sources as one data set, each with its share of the examples.

    Examples 0 .. n_1 - 1 are of the first source, the next n_2 of the second, and so on: the shares are exact over an
    epoch, and the loader's shuffle, a pure function of (seed, epoch), spreads them over the batches. A source with
    fewer demonstrations than its part of the examples starts over, one with more is used up to its part.

    Args:
        sources: label -> demonstrations, all for the same tokenizer.
        shares: label -> weight of the source; they are divided by their sum.
        num_examples: how many examples an epoch has; by default the fewest that use every demonstration of every
            source that is finite, and 2^20 if none is.
        finite: labels of the sources of which every demonstration counts, such as files.

    Attributes:
        counts: label -> examples of that source in an epoch.

    Raises:
        ValueError: no sources, a share that is not positive, or so few examples that a source gets none.
    """

    def __init__(
        self,
        sources: Mapping[str, TraceDataset],
        shares: Mapping[str, float],
        *,
        num_examples: int | None = None,
        finite: tuple[str, ...] = (),
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        for label, share in shares.items():
            if not 0 < share < math.inf:
                raise ValueError(f"the share of {label!r} must be above 0, found {share}")
        first = next(iter(sources.values()))
        super().__init__(first.tokenizer, template=first.template, max_length=first.max_length)
        self.sources = dict(sources)
        total = math.fsum(shares[label] for label in sources)
        parts = {label: shares[label] / total for label in sources}
        if num_examples is None:
            # The small number keeps 600 / 0.75 from being 801 in floating point.
            needed = [math.ceil(len(sources[label]) / parts[label] - 1e-6) for label in finite]
            num_examples = max(needed, default=1 << 20)
        self.counts = apportion(parts, num_examples)
        for label, count in self.counts.items():
            if not count:
                raise ValueError(f"{num_examples} examples leave none for {label!r}, whose share is {parts[label]:.3g}")
        self._labels = list(sources)
        self._ends = list(accumulate(self.counts.values()))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> TraceExample:
        # The source renders it: each may have a template of its own.
        source, number = self._place(index)
        return source[number]

    def trace(self, index: int) -> Trace:
        source, number = self._place(index)
        return source.trace(number)

    def label(self, index: int) -> str:
        """Return the source of an example."""
        return self._labels[bisect_right(self._ends, index)]

    def _place(self, index: int) -> tuple[TraceDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        label = self.label(index)
        source = self.sources[label]
        begin = self._ends[self._labels.index(label)] - self.counts[label]
        return source, (index - begin) % len(source)


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Divide `total` in proportion to shares that add up to 1: rounded down, the rest to the largest remainders."""
    exact = {label: share * total for label, share in shares.items()}
    counts = {label: math.floor(value + 1e-9) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: total - sum(counts.values())]:
        counts[label] += 1
    return counts
