"""Several ways of doing one thing, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from emerdiff_probe.evaluation.cost import measured


@torch.no_grad()
def seconds_of(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> pd.DataFrame:
    """Seconds of every way (column) in every round (row); the ways in turn, in an order that changes."""
    for name, way in ways.items():  # the first time of each is slower
        way()
        print(f"# {name}", flush=True)
    rounds = []
    order = np.random.default_rng(0)
    for _ in range(repeats):
        took = {}
        for name in order.permutation(list(ways)):
            _, cost = measured(ways[name], device)
            took[name] = cost.seconds
        rounds.append(took)
    return pd.DataFrame(rounds)[list(ways)]


def beside_the_first(seconds: pd.DataFrame) -> pd.DataFrame:
    """Median milliseconds of every way, and what it takes over the first in percent, with its 95% interval."""
    first = seconds.iloc[:, 0]
    rows = []
    for name in seconds:
        over = 100 * ((seconds[name] - first) / first.median()).to_numpy()
        interval = bootstrap((over,), np.median, method="percentile", rng=0).confidence_interval
        low, high = (0.0, 0.0) if name == first.name else interval
        rows.append(
            {
                "way": name,
                "milliseconds": round(1000 * seconds[name].median(), 3),
                "over": round(float(np.median(over)), 2),
                "low": round(float(low), 2),
                "high": round(float(high), 2),
            }
        )
    return pd.DataFrame(rows)
