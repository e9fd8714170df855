"""What a process may use: quotas of cgroups, limits of threads, huge pages."""
import os
import subprocess
import sys

import numpy as np
import pytest

import sparselsh as sl
from sparselsh import _resources, _threads
from sparselsh._arrays import aligned


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Make files of cgroups; the membership is given as text."""
    def make(membership, **files):
        for name, text in files.items():
            path = tmp_path / "fs" / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "cgroup").write_text(membership)
        monkeypatch.setattr(_resources, "GROUPS", tmp_path / "fs")
        monkeypatch.setattr(_resources, "MEMBERSHIP", tmp_path / "cgroup")
        _resources.processor_quota.cache_clear()

    yield make
    _resources.processor_quota.cache_clear()


@pytest.mark.parametrize("membership, files, quota", [
    ("0::/\n", {"cpu_DOT_max": "150000 100000\n"}, 2),
    ("0::/\n", {"cpu_DOT_max": "max 100000\n"}, None),
    ("0::/a/b\n", {"a__b__cpu_DOT_max": "max 100000", "a__cpu_DOT_max": "300000 100000"}, 3),
    ("0::/outside/of/this\n", {"cpu_DOT_max": "50000 100000"}, 1),
    ("3:cpu,cpuacct:/x\n", {"cpu__x__cpu.cfs_quota_us": "400000",
                            "cpu__x__cpu.cfs_period_us": "100000"}, 4),
    ("1:cpu:/\n0::/\n", {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, None),
    ("0::/\n", {"cpu_DOT_max": "many\n"}, None),
    ("", {}, None),
])
def test_the_quota_of_a_cgroup_limits_the_default_number_of_threads(
        groups, monkeypatch, membership, files, quota):
    groups(membership, **files)
    assert _resources.processor_quota() == quota
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert sl.get_num_threads() == (quota or 64)


@pytest.mark.parametrize("membership, files, most", [
    ("0::/\n", {"memory_DOT_max": "1000000", "memory_DOT_current": "400000",
                "memory_DOT_stat": "anon 5\ninactive_file 100000\n"}, 700_000),
    ("0::/\n", {"memory_DOT_max": "max", "memory_DOT_current": "400000"}, None),
    ("4:memory:/x\n", {"memory__x__memory.limit_in_bytes": "1000000",
                       "memory__x__memory.usage_in_bytes": "950000",
                       "memory__x__memory.stat": "total_inactive_file 0\n"}, 50_000),
])
def test_the_memory_that_a_cgroup_leaves_limits_what_is_available(groups, membership, files, most):
    groups(membership, **files)
    available = _resources.available_memory()
    assert available == most if most is not None else available > 1_000_000


def test_threadpool_limits_limit_the_default_number_of_threads(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_n_processors", lambda: 8)
    before = sl.get_num_threads()
    with threadpoolctl.threadpool_limits(limits=1):
        n = sl.get_num_threads()
    if _threads._openmp.max_threads() == 1:
        pytest.skip("one processor, or a build without OpenMP")
    assert n == 1 and sl.get_num_threads() == before == 8
    with threadpoolctl.threadpool_limits(limits=1):
        sl.set_num_threads(3)  # what is said explicitly counts
        assert sl.get_num_threads() == 3
        sl.set_num_threads(None)


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch):
    # GNU OpenMP would end the process
    n_left = 2

    class Thread(_threads.threading.Thread):
        def start(self):
            nonlocal n_left
            if not n_left:
                raise RuntimeError("can't start new thread")
            n_left -= 1
            super().start()

    monkeypatch.setattr(_threads, "_n_startable", 1)
    monkeypatch.setattr(_threads.threading, "Thread", Thread)
    net = sl.Network([sl.Linear(3, 2).set_weights(np.ones((2, 3)))], n_threads=7)
    with pytest.raises(RuntimeError, match=r"n_threads=7: the system starts only 3 .*lower"):
        net.topk(np.ones((2, 3)))
    n_left = 6
    net.topk(np.ones((2, 3)))
    assert _threads._n_startable == 7
    net.topk(np.ones((2, 3)))


def test_large_sparse_arrays_begin_at_a_page_and_are_zero():
    array = aligned.sparse_zeros((1 << 15, 1 << 10))
    assert array.nbytes >= aligned.SPARSE_MIN_BYTES and array.flags.writeable
    assert array.ctypes.data % aligned.ALIGNMENT == 0 and not array.any()
    array[5] = 1
    assert array.sum() == 1 << 10 and array.copy()[5, 0] == 1
    assert aligned.sparse_zeros((3, 5), np.uint16).shape == (3, 5)
    with pytest.raises(MemoryError, match="no room"):
        aligned.sparse_zeros((1 << 40, 1 << 20))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_moments_of_rows_that_are_not_touched_take_no_memory():
    code = """if True:
        import numpy as np, sparselsh as sl
        def used():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        net = sl.Network([sl.Linear(8, 64), sl.LSHLinear(64, 600_000, density=1e-4, candidates=0,
                                                         fill=False)], random_state=0, n_threads=1)
        X = np.ones((4, 8), np.float32)
        net.partial_fit(X, [1, 2, 3, 4])
        before = used()
        for i in range(8):
            net.partial_fit(X, 70_000 * i + np.arange(4) * 9_000)
        print(used() - before)"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          check=True)
    # 32 rows in other huge pages of each of two moments: 128 MB; with small pages 0.3 MB
    assert int(done.stdout) < 30e6
