"""Networks that several processes, on one machine or on many, train and use together.

    group ─► Shards ─► ColumnLinear, RowLSHLinear, losses ─► ShardedNetwork ─► folder

    _groups      processes: torch.distributed, MPI, one alone, one of many that are absent
    _shards      what a process owns, exchanges, sums along a tree that knows no process
    _layers      the two layers, of which a process has a part
    _losses      losses over outputs of which a process has some
    _interrupts  signals that end all processes after the same step
    _network     ShardedNetwork
    _cost        what a training needs: memory, traffic, time
    _rows        rows in a folder of files, read by parts
    _serving     servers that have some of the labels, and what asks them
    _folder      folders of networks, and the callback that writes them

Nothing of torch or of MPI is imported before a group of theirs is made.
"""
from ._cost import estimate
from ._folder import Checkpoint
from ._groups import AsIf, Group, group, launched_processes, solo
from ._network import ShardedNetwork, load, split
from ._rows import RowFolder, open_rows
from ._serving import Front, Part
from ._shards import DistributedError

__all__ = ["AsIf", "Checkpoint", "DistributedError", "Front", "Group", "Part", "RowFolder",
           "ShardedNetwork", "estimate", "group", "load", "open_rows", "solo", "split"]
