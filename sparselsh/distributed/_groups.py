"""Groups of processes, over engines that exist: torch.distributed, MPI, or one process alone.

A group carries arrays from every process to every other, and says which process was lost. It does
not start processes, watch or restart them: that is the job of what started them. Everything goes
through one exchange, in which each process has one block for each other one, so that the order of
sums is decided by the caller.
"""
from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import threading
import time
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import _validation as check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMEOUT = 300  # seconds that a process may be behind the others; longer than any checkpoint takes
SECONDS_TO_REPORT = 3.0  # that survivors of a loss have to say that they live
POLL_INTERVAL = 0.02  # seconds
MPI_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # that MPI's launchers set
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets


class Lost(Exception):
    """An exchange failed: some processes are gone.

    Attributes
    ----------
    ranks : list of int
        Which; empty where it is not known.
    what : str
        What has happened to them, in words.
    """

    def __init__(self, ranks: Sequence[int], what: str) -> None:
        super().__init__(list(ranks), what)
        self.ranks, self.what = list(ranks), what


class Group(Protocol):
    """The interface of the processes that train a network together.

    Attributes
    ----------
    rank, size : int
        The number of this process, from 0, and the number of processes.
    n_bytes : int
        Bytes that this process has sent to others.
    """

    rank: int
    size: int
    n_bytes: int

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        """Send block i of (size, ...) to process i; block i of the result comes from it."""

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`exchange` for runs of uint8 of unequal lengths."""

    def fail(self, what: str) -> None:
        """Leave the group because of an error, so that no other process waits for this one."""

    def close(self) -> None:
        """End the use of the group."""


class Solo:
    """One process alone."""

    rank, size, n_bytes = 0, 1, 0

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        return blocks

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(blocks)

    def fail(self, what: str) -> None:
        pass

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return "Solo()"


class AsIf:
    """One process of many, with the others simulated: each sends what this process sends to it.

    It measures the time and the memory of one of many processes on a single machine. The trained
    network is not usable otherwise.

    Parameters
    ----------
    rank, size : int
    """

    def __init__(self, rank: int, size: int) -> None:
        self.size = check.integer(size, "size", minimum=1)
        self.rank = check.integer(rank, "rank", minimum=0, maximum=self.size - 1)
        self.n_bytes = 0

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        self.n_bytes += blocks.nbytes // self.size * (self.size - 1)
        return np.array(blocks)

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.n_bytes += sum(block.nbytes for i, block in enumerate(blocks) if i != self.rank)
        return list(blocks)

    def fail(self, what: str) -> None:
        pass

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"AsIf({self.rank}, {self.size})"


class Torch:
    """The processes of torch.distributed, with its backend gloo.

    The process group is the one that is there, or is made from the variables that torchrun, Ray
    Train, Kubeflow and others set.

    Parameters
    ----------
    timeout : float
        Seconds after which a process that does not answer counts as lost.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        timeout = check.number(timeout, "timeout", above=0)
        limit = datetime.timedelta(seconds=timeout)
        self._owns = not dist.is_initialized()
        if self._owns:
            dist.init_process_group("gloo", timeout=limit)
        self._group = dist.new_group(backend="gloo", timeout=limit)
        self._options = dist.AllToAllOptions()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.n_bytes = 0
        self._store: Any = None
        with contextlib.suppress(AttributeError):  # where it is missing, a loss has no name
            store = attrgetter("_get_default_store")(dist.distributed_c10d)()
            store.set_timeout(datetime.timedelta(seconds=SECONDS_TO_REPORT))
            self._store = dist.PrefixStore(f"sparselsh/{_n_made()}", store)

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        blocks = np.ascontiguousarray(blocks)
        out = np.empty_like(blocks)
        self.n_bytes += blocks.nbytes // self.size * (self.size - 1)
        sent, received = (self._torch.from_numpy(a.reshape(-1).view(np.uint8))
                          for a in (blocks, out))
        if blocks.size:
            self._all_to_all(received, sent)
        return out

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = np.array([[block.nbytes] for block in blocks], np.int64)
        theirs = self.exchange(lengths)[:, 0].tolist()
        sent = np.concatenate([block.reshape(-1).view(np.uint8) for block in blocks])
        out = np.empty(sum(theirs), np.uint8)
        self.n_bytes += sent.nbytes - blocks[self.rank].nbytes
        self._all_to_all(self._torch.from_numpy(out), self._torch.from_numpy(sent), theirs,
                         lengths[:, 0].tolist())
        return np.split(out, np.cumsum(theirs)[:-1])

    def _all_to_all(self, received: Any, sent: Any, theirs: Sequence[int] = (),
                    own: Sequence[int] = ()) -> None:
        # what dist.all_to_all_single calls, whose checks and logging cost as much as this does
        try:
            self._group.alltoall_base(received, sent, theirs, own, self._options).wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> Lost:
        """Which processes are gone: those that do not say within some seconds that they live."""
        what = str(error).strip().splitlines()[-1][:200]
        if self._store is None:
            return Lost([], what)
        # in a thread: where the process that the store lives in is stopped, it answers nothing
        answers: list[Lost] = []
        thread = threading.Thread(target=lambda: answers.append(self._lost_by_store(what)),
                                  daemon=True)
        thread.start()
        thread.join(2 * SECONDS_TO_REPORT)
        return answers[0] if answers else Lost([0] if self.rank else [], what)

    def _lost_by_store(self, what: str) -> Lost:
        others = [rank for rank in range(self.size) if rank != self.rank]
        silent, failed = others, list[int]()
        try:
            self._store.set(f"lives/{self.rank}", what)
            deadline = time.monotonic() + SECONDS_TO_REPORT
            while True:
                silent = [rank for rank in others if not self._store.check([f"lives/{rank}"])]
                failed = [rank for rank in silent if self._store.check([f"failed/{rank}"])]
                if failed or len(silent) <= 1 or time.monotonic() > deadline:
                    break
                time.sleep(POLL_INTERVAL)
            if failed:
                silent, what = failed, self._store.get(f"failed/{failed[0]}").decode()
            if self.rank == 0:  # the store may live in this process: let the others read it
                self._await([f"read/{rank}" for rank in others if rank not in silent])
            else:
                self._store.set(f"read/{self.rank}", "")
        except (RuntimeError, OSError):  # the store is gone, and with it the process it lived in
            silent = [0] if self.rank else []
        return Lost(silent, what)

    def _await(self, keys: list[str]) -> None:
        deadline = time.monotonic() + SECONDS_TO_REPORT
        while keys and not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def fail(self, what: str) -> None:
        if self._group is None:  # it has left
            return
        if self._store is not None:
            with contextlib.suppress(RuntimeError, OSError):
                self._store.set(f"failed/{self.rank}", what)
        with contextlib.suppress(Exception):  # a group that is broken already
            self._dist.destroy_process_group(self._group)
        self._group = None
        if self._store is not None and self.rank == 0:
            with contextlib.suppress(RuntimeError, OSError):
                self._await([f"read/{rank}" for rank in range(1, self.size)])

    def close(self) -> None:
        if self._owns and self._dist.is_initialized():
            self._dist.destroy_process_group()

    def __repr__(self) -> str:
        return f"Torch(rank={self.rank}, size={self.size})"


_groups_made = 0


def _n_made() -> int:
    """A number per group of this process, the same in all processes."""
    global _groups_made
    _groups_made += 1
    return _groups_made


class MPI:
    """The processes of MPI's world, through mpi4py.

    They must have been started by ``mpiexec python -m mpi4py``: with plain ``python`` an exception
    in one process would leave the others waiting for ever.
    """

    def __init__(self) -> None:
        if "mpi4py.run" not in sys.modules and not _is_main_of_mpi4py():
            raise RuntimeError("MPI needs `python -m mpi4py`: without it, an exception in one "
                               "process leaves the others waiting; start with mpiexec -n 2 python "
                               "-m mpi4py -m sparselsh ..., or python -m mpi4py script.py")
        from mpi4py import MPI as mpi

        self._mpi = mpi
        self._comm = mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self.n_bytes = 0

    def exchange(self, blocks: np.ndarray) -> np.ndarray:
        blocks = np.ascontiguousarray(blocks)
        out = np.empty_like(blocks)
        self.n_bytes += blocks.nbytes // self.size * (self.size - 1)
        if blocks.size:
            self._comm.Alltoall(*(a.reshape(-1).view(np.uint8) for a in (blocks, out)))
        return out

    def exchange_bytes(self, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = np.array([block.nbytes for block in blocks], np.int64)
        theirs = self.exchange(lengths[:, None])[:, 0]
        sent = np.concatenate([block.reshape(-1).view(np.uint8) for block in blocks])
        out = np.empty(int(theirs.sum()), np.uint8)
        self.n_bytes += sent.nbytes - blocks[self.rank].nbytes
        self._comm.Alltoallv([sent, lengths, self._mpi.BYTE], [out, theirs, self._mpi.BYTE])
        return np.split(out, np.cumsum(theirs)[:-1])

    def fail(self, what: str) -> None:
        """Do nothing: mpi4py.run ends all processes when the exception leaves the program."""

    def close(self) -> None:
        self._comm.Free()

    def __repr__(self) -> str:
        return f"MPI(rank={self.rank}, size={self.size})"


def _is_main_of_mpi4py() -> bool:
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main is not None and (main.name or "").startswith("mpi4py")


def group(*, timeout: float = TIMEOUT) -> Group:
    """The group of the processes that were started together.

    The first of these that exists: the process group of torch.distributed; a group by the
    environment variables that torchrun, Ray Train, Kubeflow and Spark's TorchDistributor set; the
    group of MPI, if its launcher started this process; this process alone.

    Parameters
    ----------
    timeout : float
        Seconds after which a process that does not answer counts as lost, for torch.distributed. It
        must be longer than the slowest checkpoint takes.

    Returns
    -------
    Group

    Raises
    ------
    ImportError
        If the package of the engine is missing.
    RuntimeError
        If MPI was not started by ``python -m mpi4py``.
    """
    timeout = check.number(timeout, "timeout", above=0)
    torch_dist = sys.modules.get("torch.distributed")
    if torch_dist is not None and torch_dist.is_available() and torch_dist.is_initialized():
        return Torch(timeout)
    if all(name in os.environ for name in TORCH_VARIABLES):
        with _needing("torch", "distributed"):
            return Torch(timeout)
    if any(name in os.environ for name in MPI_VARIABLES):
        with _needing("mpi4py", "mpi"):
            return MPI()
    return Solo()


@contextlib.contextmanager
def _needing(package: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f"the processes were started for {package}, which is missing ({error}); "
                          f'pip install "sparselsh-nn[{extra}]"') from error


def solo() -> Solo:
    """The group of one process alone.

    Returns
    -------
    Group
    """
    return Solo()


def launched_processes() -> int:
    """Processes that were started together, as their launcher says; 1 where it does not."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    return 1


def local_processes() -> int:
    """Processes of this group on this machine, as their launcher says; 1 where it does not."""
    for name in ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    return 1


def host() -> str:
    """The name of this machine, and the id of this process."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


def as_bytes(value: bytes) -> np.ndarray:
    """Bytes as an array for `exchange_bytes`."""
    return np.frombuffer(value, np.uint8)
