"""What a training of shards needs: bytes exactly, times by a model with few constants.

A step is compute, divided by the cores, plus exchanges. The bytes of a step are those that groups
count. The times are those of the kernels on one core of an AMD EPYC (Zen 5), and of a network with
a bandwidth and a latency: docs/guide/distributed.md says how far off they were.
"""
from __future__ import annotations

from typing import Any

from .. import _validation as check
from ._shards import OWNERS_MIN_PROCESSES

# Fitted to six shapes, 64 to 512 hidden units and 128 to 512 rows, on one core:
# python -P bench/distributed.py plan TRAIN.txt
FLOPS_PER_SECOND = 132e9  # of a core, in products and the updates behind them
SECONDS_PER_ACTIVE = 0.7e-6  # to move an active neuron between buckets, and its place in the set
SECONDS_PER_ROW = 2.56e-6  # to look a row up in the buckets
SECONDS_PER_STEP = 0.25e-3  # that are not divided among cores
MACHINE_BYTES_PER_SECOND = 150e9  # that all cores of a machine move in updates of rows
HASHED_BITS = 84  # of a neuron, in all tables
TOUCHED = 0.4  # features of a batch per entry, as rows share features
N_CANDIDATES = 5  # per row
BYTES_PER_LABEL = 208  # of codes, buckets and sketches
BYTES_PER_STAT = 16  # maximum, sum and label outputs of a row, and the flags of a step


def estimate(*, n_labels: int, n_features: int = 1_000_000, nnz: float = 100.0,
             n_hidden: int = 128, n_active: int = 4096, batch_size: int = 256,
             candidates: int = N_CANDIDATES, processes: int = 1, cores: int = 1,
             network: float = 10.0, latency: float = 50.0, dtype: str = "float32",
             core_speed: float = 1.0) -> dict[str, Any]:
    """Estimate memory, traffic and speed of a training by several processes.

    Parameters
    ----------
    n_labels, n_features : int
    nnz : float
        Features per row.
    n_hidden : int
        Hidden units.
    n_active : int
        Output neurons that a step computes, in all processes together.
    batch_size : int
        Rows per step.
    candidates : int
        Neurons that are looked up per row.
    processes : int
        P.
    cores : int
        Cores of each process.
    network : float
        Gigabits per second that a process sends and receives.
    latency : float
        Microseconds that an exchange takes at least.
    dtype : {"float32", "bfloat16"}
        Of weights and moments.
    core_speed : float
        Of a core, where 1 is that of an idle AMD EPYC (Zen 5), which the times are from:
        ``python -P bench/distributed.py plan TRAIN.txt`` measures it.

    Returns
    -------
    dict
        processes; bytes_per_process, of weights, moments and tables; bytes_sent_per_step, by a
        process to the others, as groups count them; seconds_of_compute and
        seconds_of_exchange, per step; seconds_per_step; rows_per_second; bound, "compute" or
        "network", whichever takes longer.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.
    """
    n_labels = check.integer(n_labels, "n_labels", maximum=2**40)
    n_features = check.integer(n_features, "n_features", maximum=2**40)
    nnz = check.number(nnz, "nnz", above=0)
    n_hidden = check.integer(n_hidden, "n_hidden")
    n_active = min(n_labels, check.integer(n_active, "n_active"))
    batch_size = check.integer(batch_size, "batch_size")
    candidates = check.integer(candidates, "candidates", minimum=0)
    processes = check.integer(processes, "processes")
    cores = check.integer(cores, "cores")
    network = check.number(network, "network", above=0)
    latency = check.number(latency, "latency", minimum=0)
    dtype = check.choice(dtype, "dtype", ("float32", "bfloat16"))

    width = 3 * (4 if dtype == "float32" else 2)  # of a weight and its two moments
    memory = (n_labels * (width * n_hidden + BYTES_PER_LABEL) + n_features * width * n_hidden
              ) / processes
    sent = bytes_per_step(batch_size, n_hidden, candidates, processes)

    core_speed = check.number(core_speed, "core_speed", above=0)
    compute = _seconds_of_compute(batch_size, nnz, n_hidden, n_active, width, processes,
                                  cores) / core_speed
    n_exchanges = 4 if candidates else 3
    if processes >= OWNERS_MIN_PROCESSES:
        n_exchanges = 6 if candidates else 4
    exchange = 0.0
    if processes > 1:
        exchange = 8 * sent / (network * 1e9) + n_exchanges * latency * 1e-6
    seconds = compute + exchange
    return {"processes": processes, "bytes_per_process": int(memory), "bytes_sent_per_step": sent,
            "seconds_of_compute": compute, "seconds_of_exchange": exchange,
            "seconds_per_step": seconds, "rows_per_second": batch_size / seconds,
            "bound": "network" if exchange > compute else "compute"}


def bytes_per_step(batch_size: int, n_hidden: int, candidates: int, processes: int) -> int:
    """Bytes that a process sends in a step that rebuilds no tables.

    The hidden layer and its gradient, candidates with their counts, and three numbers per row.
    """
    if processes == 1:
        return 0
    widest = -(-n_hidden // processes)
    found, stats = 8 * candidates, BYTES_PER_STAT
    n_joined = batch_size
    if processes >= OWNERS_MIN_PROCESSES:  # of each row to its owner, and the result from there
        n_joined = -(-batch_size // processes)
        found, stats = 12 * candidates, 2 * BYTES_PER_STAT
    return (processes - 1) * (batch_size * 8 * widest + n_joined * (found + stats))


def _seconds_of_compute(batch_size: int, nnz: float, n_hidden: int, n_active: int, width: int,
                        processes: int, cores: int) -> float:
    own = n_active / processes
    flops = 6 * batch_size * own * n_hidden + 2 * own * n_hidden * HASHED_BITS
    entries = batch_size * nnz / processes  # of the own hidden units, as if they were all
    moved = n_hidden * (2 * width * (own + TOUCHED * entries) + 12 * entries)
    return (max(flops / FLOPS_PER_SECOND / cores, moved / MACHINE_BYTES_PER_SECOND)
            + own * SECONDS_PER_ACTIVE / cores + batch_size * SECONDS_PER_ROW / cores
            + SECONDS_PER_STEP)
