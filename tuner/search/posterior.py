"""Gaussian-process posterior of a metric at unmeasured points: the replay's prediction, corrected.

log(metric) = log(prediction) + f(point) + noise, f a Gaussian process whose kernel is part additive
over the settings (each has its own effect), part a sum over pairs of them (bits and sequences, say)
and part a product (all interact). Without predictions the first term is 0 and f explains
everything. Exact inference: there are tens of measurements.
Method: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1, and
equation 5.12 for measurements left out one at a time; additive kernels: Duvenaud et al., Additive
Gaussian Processes, 2011.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LENGTHS = (0.35, 1.0, 3.0)  # of the kernel, in ranks scaled to [0, 1]
# Of the variance, what settings explain individually and in pairs; the rest is of all together.
FRACTIONS = ((0.4, 0.0), (0.8, 0.0), (0.4, 0.4))
SIGNALS = (0.1, 0.3, 1.0)  # standard deviation of f, in natural logarithms
# Of the noise: a machine may be quieter or louder than what is assumed of it. Its logarithm is
# normal beforehand, with this standard deviation.
NOISES, NOISE_DEVIATION = (0.2, 0.3, 0.45, 0.67, 1.0, 1.5, 2.2), 1.0
COVERED, COVERED_DEVIATIONS = 0.9, 1.645  # of the errors; half the interval that holds them
FEWEST_ERRORS = 4
OTHER_KIND = 0.3  # correlation of two choices without an order


@dataclass(frozen=True)
class Axis:
    """One setting of every candidate: ranks scaled to [0, 1], and whether they have an order."""

    ranks: Floats
    ordered: bool

    def kernel(self, length: float) -> Floats:
        """Correlations of all candidates, [N, N]."""
        apart = np.abs(self.ranks[:, None] - self.ranks[None, :])
        if not self.ordered:
            return np.where(apart > 0, OTHER_KIND, 1.0)
        found: Floats = np.exp(-0.5 * (apart / length) ** 2)
        return found


@dataclass(frozen=True)
class Posterior:
    """Mean and standard deviation of log(metric) for each candidate, without noise.

    errors: of the measured ones, each predicted from the others, in standard deviations (with
    noise), in the order of the measurements. noise: how large noise is here, by what was assumed.
    """

    mean: Floats
    deviation: Floats
    errors: Floats = field(default_factory=lambda: np.zeros(0))
    noise: float = 1.0

    @property
    def calibrated(self) -> Posterior:
        """With deviations as large as the errors that were seen: nine of ten lie within the 90 %
        interval (split conformal prediction, Vovk et al., Algorithmic Learning in a Random World,
        2005). Never smaller, and unchanged before FEWEST_ERRORS."""
        count = len(self.errors)
        if count < FEWEST_ERRORS:
            return self
        rank = min(count, math.ceil((count + 1) * COVERED)) - 1
        factor = max(1.0, float(np.sort(np.abs(self.errors))[rank]) / COVERED_DEVIATIONS)
        return replace(self, deviation=self.deviation * factor)


class Regression:
    """The kernels of one set of candidates, built once; `posterior` conditions them on
    measurements."""

    def __init__(self, axes: Sequence[Axis], size: int) -> None:
        self._kernels: list[Floats] = []
        for length in LENGTHS:
            own = [axis.kernel(length) for axis in axes] or [np.ones((size, size))]
            single, joint = np.mean(own, axis=0), np.prod(own, axis=0)
            pairs = [one * other for one, other in itertools.combinations(own, 2)] or own
            double = np.mean(pairs, axis=0)
            for alone, paired in FRACTIONS:
                parts = alone * single + paired * double + (1 - alone - paired) * joint
                # a tenth of the variance is common to all: the overall error of the predictions
                self._kernels.append(0.1 + 0.9 * parts)

    def posterior(
        self,
        prior: Floats,
        rows: Sequence[int],
        values: Floats,
        noise: Floats,
        scales: Sequence[float] = NOISES,
    ) -> Posterior:
        """Returns the posterior of all candidates.

        prior: log predictions [N]; rows: measured candidates; values: their log means; noise: the
        standard deviation of each, in logarithms, up to one of these scales. The kernel, its
        variance and the scale of the noise are the likeliest of a small grid.
        """
        size = len(prior)
        if not len(rows):
            return Posterior(prior.copy(), np.full(size, SIGNALS[-1]))
        index = np.asarray(rows)
        residual = values - prior[index]
        best: tuple[float, Posterior] | None = None
        for kernel, signal, scale in itertools.product(self._kernels, SIGNALS, scales):
            covariance = signal**2 * kernel
            inner = covariance[np.ix_(index, index)] + np.diag((scale * noise) ** 2 + 1e-6)
            lower = np.linalg.cholesky(inner)
            half = np.linalg.solve(lower, residual)
            likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(lower)).sum())
            likelihood -= 0.5 * (math.log(scale) / NOISE_DEVIATION) ** 2
            if best is None or likelihood > best[0]:
                cross = np.linalg.solve(lower, covariance[index])  # [n, N]
                variance = np.diag(covariance) - np.sum(cross**2, axis=0)
                deviation = np.sqrt(np.maximum(variance, 0.0))
                inverse = np.linalg.inv(inner)
                errors = inverse @ residual / np.sqrt(np.diag(inverse))
                best = likelihood, Posterior(prior + cross.T @ half, deviation, errors, scale)
        assert best is not None
        return best[1]

    def fill(self, known: Sequence[int], values: Floats, size: int) -> Floats:
        """Interpolates the log predictions of all candidates from those of some of them."""
        mean = float(np.mean(values))
        exact = np.full(len(known), 1e-3)
        found = self.posterior(np.full(size, mean), known, values, exact, scales=[1.0])
        filled = found.mean.copy()
        filled[np.asarray(known)] = values
        return filled
