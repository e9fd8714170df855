"""Counters of all workers in shared memory, as text for Prometheus.

Each worker writes into a row of its own, so that no lock is needed; whoever is asked adds the rows
up. A worker that takes the place of another goes on with its row: counters never fall.
"""
from __future__ import annotations

import bisect
import mmap
import os
import time
from typing import Any

import numpy as np

STATUSES = (200, 400, 404, 405, 408, 413, 429, 500, 503)
PATHS = ("/predict", "/explain", "other")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # bounds of a bucket
N_REQUESTS = len(PATHS) * len(STATUSES)
N_COUNTERS = N_REQUESTS + len(SECONDS) + 2 + 2 + 1
SUM, COUNT = N_REQUESTS + len(SECONDS), N_REQUESTS + len(SECONDS) + 1
CALLS, ITEMS, STARTS = COUNT + 1, COUNT + 2, COUNT + 3


class Metrics:
    """Counters of `n_workers` workers, made before they are forked."""

    def __init__(self, n_workers: int) -> None:
        memory = mmap.mmap(-1, n_workers * N_COUNTERS * 8)  # shared with forked processes
        self._rows: Any = np.frombuffer(memory, np.float64).reshape(n_workers, N_COUNTERS)
        self._row = self._rows[0]
        self.begin = time.time()

    def use_row(self, worker: int) -> None:
        """Count as this worker from now on."""
        self._row = self._rows[worker]
        self._row[STARTS] += 1

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        at = PATHS.index(path) if path in PATHS else len(PATHS) - 1
        status = status if status in STATUSES else 500
        self._row[at * len(STATUSES) + STATUSES.index(status)] += 1
        if path == "/predict":
            place = bisect.bisect_left(SECONDS, seconds)
            if place < len(SECONDS):
                self._row[N_REQUESTS + place] += 1
            self._row[SUM] += seconds
            self._row[COUNT] += 1

    def batch(self, n_items: int) -> None:
        """Count a call to the model."""
        self._row[CALLS] += 1
        self._row[ITEMS] += n_items

    def text(self) -> str:
        """All counters in Prometheus's text format, version 0.0.4."""
        total = self._rows.sum(axis=0).tolist()
        lines = ["# HELP sparselsh_requests_total Answered requests.",
                 "# TYPE sparselsh_requests_total counter"]
        for i, path in enumerate(PATHS):
            for j, status in enumerate(STATUSES):
                value = total[i * len(STATUSES) + j]
                if value:
                    lines.append(f'sparselsh_requests_total{{path="{path}",status="{status}"}} '
                                 f"{value:.0f}")
        lines += ["# HELP sparselsh_predict_seconds Time from a request to its answer.",
                  "# TYPE sparselsh_predict_seconds histogram"]
        so_far = 0.0
        for k, bound in enumerate(SECONDS):
            so_far += total[N_REQUESTS + k]
            lines.append(f'sparselsh_predict_seconds_bucket{{le="{bound:g}"}} {so_far:.0f}')
        lines += [f'sparselsh_predict_seconds_bucket{{le="+Inf"}} {total[COUNT]:.0f}',
                  f"sparselsh_predict_seconds_sum {total[SUM]:.6f}",
                  f"sparselsh_predict_seconds_count {total[COUNT]:.0f}"]
        for name, text, value in (
                ("model_calls", "Calls to the model, each for a batch.", total[CALLS]),
                ("items", "Texts or rows in these calls.", total[ITEMS]),
                ("worker_starts", "Starts of workers, restarts included.", total[STARTS])):
            lines += [f"# HELP sparselsh_{name}_total {text}",
                      f"# TYPE sparselsh_{name}_total counter",
                      f"sparselsh_{name}_total {value:.0f}"]
        lines += ["# HELP sparselsh_start_time_seconds When the server began.",
                  "# TYPE sparselsh_start_time_seconds gauge",
                  f"sparselsh_start_time_seconds {self.begin:.3f}"]
        return "\n".join(lines) + "\n"

    def worker(self) -> int:
        """The process id of this worker, for /health."""
        return os.getpid()
