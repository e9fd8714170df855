"""The faults: each function tries some of them and returns (number tried, findings).

A finding is a crash, a hang, an error of another kind than the fault explains, an object that is
neither what it was nor what it should be, or a file that is neither. `run` calls a function in a
process of its own, whose end by a signal is a finding too.
"""
import contextlib
import ctypes
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

from . import calls

HERE = Path(__file__).parent
LEAST_BYTES = 256  # of allocations that fail: arrays and work memory of kernels
SECONDS = 60  # for one call and its check
PACKAGE = os.path.dirname(sl.__file__)


def compiled(folder):
    """Compile malloc.c; return the path of the library, or None without a compiler."""
    path = Path(folder) / "failing.so"
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", str(HERE / "malloc.c"), "-o", str(path),
                        "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return path


def library():
    """The preloaded library."""
    loaded = ctypes.CDLL(None)
    loaded.fault_arm.argtypes = [ctypes.c_long, ctypes.c_size_t]
    loaded.fault_counted.restype = loaded.fault_file_calls.restype = ctypes.c_long
    loaded.fault_kill_at.argtypes = [ctypes.c_long]
    loaded.fault_handler.restype = ctypes.c_void_p
    return loaded


SET_HANDLER = 304  # place of PyDataMem_SetHandler in the table of NumPy's C functions


def watch_arrays(lib):
    """Let NumPy allocate its arrays by the preloaded library."""
    python = ctypes.pythonapi
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    python.PyCapsule_New.restype = ctypes.py_object
    python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    table = python.PyCapsule_GetPointer(np._core._multiarray_umath._ARRAY_API, None)
    place = ctypes.c_void_p.from_address(table + SET_HANDLER * ctypes.sizeof(ctypes.c_void_p))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(place.value)
    set_handler(python.PyCapsule_New(lib.fault_handler(), b"mem_handler", None))


def spread(n, most):
    """At most `most` of the numbers 1 .. n: the first and the last ones, and some in between."""
    if most is None or n <= most:
        return list(range(1, n + 1))
    return sorted({*range(1, most // 4 + 1), n,
                   *(int(i) for i in np.linspace(1, n, most - most // 4))})


def one(name, arm, disarm, allowed):
    """Call, with a fault armed, and check; return what is wrong, or None."""
    call = calls.CALLS[name]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        thing, failed = call.make(folder), False
        try:
            arm()
            try:
                call.run(thing, folder)
            finally:
                disarm()
        except allowed as error:
            failed = True
            error.__traceback__ = None
        except BaseException as error:
            return f"{type(error).__name__}: {error} {where(error)}"
        try:
            call.check(thing, folder, failed)
        except BaseException as error:
            return f"then {type(error).__name__}: {error} {where(error)}"
    return None


def where(error):
    """The last lines of a traceback that are in the package."""
    lines = [f"{Path(frame.filename).name}:{frame.lineno}"
             for frame in traceback.extract_tb(error.__traceback__)
             if "sparselsh" in frame.filename]
    return "at " + " ".join(lines[-3:])


def allocations(name, most=None):
    """Fail the n-th allocation of a call, for each n."""
    lib = library()
    watch_arrays(lib)
    seen = []

    def arm_with(n):
        def arm():
            lib.fault_arm(n, LEAST_BYTES)
        return arm

    def disarm():
        seen.append(lib.fault_counted())
        lib.fault_arm(0, 0)

    findings = []
    one(name, arm_with(2**40), disarm, ())  # warm up
    seen.clear()
    if (what := one(name, arm_with(2**40), disarm, ())) is not None:
        return 1, [f"{name}, no fault: {what}"]
    numbers = spread(max(seen[0], 0), most)
    for n in numbers:
        if (what := one(name, arm_with(n), disarm, (MemoryError,))) is not None:
            findings.append(f"{name}, allocation {n}: {what}")
    return len(numbers), findings


def lines(name, most=None, twice=False):
    """Send SIGINT at the n-th line of Python that the package executes, for each n."""
    count, at = 0, 0
    main = threading.main_thread().ident

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if at and (count == at or (twice and count == at + 1)):
                signal.raise_signal(signal.SIGINT)
        return trace

    def arm():
        nonlocal count
        count = 0
        if threading.get_ident() == main:
            sys.settrace(trace)

    def disarm():
        sys.settrace(None)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    one(name, arm, disarm, ())
    if (what := one(name, arm, disarm, ())) is not None:
        return 1, [f"{name}, no fault: {what}"]
    numbers, findings = spread(count, most), []
    for at in numbers:
        if (what := one(name, arm, disarm, (KeyboardInterrupt,))) is not None:
            findings.append(f"{name}, line {at}: {what}")
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            findings.append(f"{name}, line {at}: the handler of SIGINT was replaced")
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return len(numbers), findings


def moments(name, most=100, twice=True, seed=0):
    """Send SIGINT at a random microsecond of a call, or two of them one after the other."""
    rng = random.Random(f"{seed} {name}")
    seconds = 0.0

    def ring(*_):
        signal.raise_signal(signal.SIGINT)
        if twice:
            signal.raise_signal(signal.SIGINT)

    def arm():
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm():
        signal.setitimer(signal.ITIMER_REAL, 0)

    import time

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, ring)
    call, took = calls.CALLS[name], []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            thing = call.make(folder)
            begin = time.perf_counter()
            call.run(thing, folder)
            took.append(time.perf_counter() - begin)
    findings = []
    for _ in range(most):
        seconds = max(1e-6, rng.uniform(0, min(took)))
        if (what := one(name, arm, disarm, (KeyboardInterrupt,))) is not None:
            findings.append(f"{name}, after {seconds * 1e6:.0f} us: {what}")
    return most, findings


def full_disk(name, most=None):
    """Let writing fail after each number of bytes."""
    call = calls.CALLS[name]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        call.run(call.make(folder), folder)
        size = max(path.stat().st_size for path in Path(folder).rglob("*"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = 0

    def arm():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    def disarm():
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    class Refused(Exception):
        pass

    findings, numbers = [], spread(size, most)
    for number in numbers:
        limit = number - 1
        what = one(name, arm, disarm, (OSError,))
        if what is not None:
            findings.append(f"{name}, after {limit} bytes: {what}")
    return len(numbers), findings


def kills(name, most=None):
    """Kill the process at each system call that changes files."""
    lib, call = library(), calls.CALLS[name]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        thing = call.make(folder)
        lib.fault_kill_at(0)
        call.run(thing, folder)
        n_calls = lib.fault_file_calls()
    numbers, findings = spread(n_calls, most), []
    for n in numbers:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            thing = call.make(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads
                child = os.fork()
            if child == 0:
                lib.fault_kill_at(n)
                with contextlib.suppress(BaseException):
                    call.run(thing, folder)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                findings.append(f"{name}, call {n}: the process ended with {status}")
                continue
            try:
                call.check_after_kill(thing, folder)
            except BaseException as error:
                findings.append(f"{name}, call {n}: {type(error).__name__}: {error}")
    return len(numbers), findings


def bits(kind, most=None):
    """Flip each bit of a small file: it is refused, or its answers are the same."""
    findings = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        data, read = calls.small_files(folder)[kind]
        path = Path(folder) / "flipped"
        path.write_bytes(data)
        want = read(path)
        if not all(map(calls.same, read(path), want)):
            return 1, [f"{kind}: two reads differ"]
        numbers = spread(8 * len(data), most)
        for number in numbers:
            flipped = bytearray(data)
            flipped[(number - 1) // 8] ^= 1 << (number - 1) % 8
            path.write_bytes(flipped)
            try:
                got = read(path)
            except ValueError as error:
                if str(path) not in str(error):
                    findings.append(f"{kind}, bit {number}: no path in {error}")
                continue
            except BaseException as error:
                findings.append(f"{kind}, bit {number}: {type(error).__name__}: {error}")
                continue
            if not all(map(calls.same, got, want)):
                findings.append(f"{kind}, bit {number}: other answers")
    return len(numbers), findings


def memory(name, most=21):
    """Save with 0 to 2 times the file's size of memory left: saved, or MemoryError."""
    rng = np.random.default_rng(0)
    net = sl.Network([sl.Linear(2000, 512), sl.Linear(512, 8000)], random_state=0, n_threads=1)
    for layer in net.layers:
        layer.set_weights(rng.standard_normal((layer.n_out, layer.n_in), dtype=np.float32))
    if name == "checkpoint":
        net.partial_fit(np.ones((2, 2000), np.float32), [0, 1])
    findings = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        path = Path(folder) / "file"
        net.save(path, training_state=name == "checkpoint")
        size, data = path.stat().st_size, path.read_bytes()
        del data
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        for part in np.linspace(0, 2, most):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + int(part * size), hard))
            try:
                net.save(path, training_state=name == "checkpoint")
            except MemoryError:
                pass
            except BaseException as error:
                findings.append(f"{part:.2f} of the file: {type(error).__name__}: {error}")
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            if path.stat().st_size != size:
                findings.append(f"{part:.2f} of the file: the file has another size")
    return most, findings


MB = 1 << 20
PEAKS = {  # objects of some hundred megabytes, and how they are saved
    "model of sparse rows": lambda: (sparse_network(), lambda net, path: net.save(path)),
    "model in bfloat16": lambda: (sparse_network("bfloat16"), lambda net, path: net.save(path)),
    "checkpoint": lambda: (sparse_network().partial_fit(*wide_rows()),
                           lambda net, path: net.save(path, training_state=True)),
    "indexes": lambda: (wide_network(), lambda net, path: net.save(path, indexes=True)),
    "index": lambda: (wide_index(), lambda index, path: index.save(path)),
    "converted": lambda: (sl.InferenceNetwork.from_network(sparse_network()),
                          lambda net, path: net.save(path)),
    "csr": lambda: (wide_rows(400_000), lambda rows, path: sl.datasets.write_csr(path, *rows)),
}
MAX_PEAK_BYTES = 64 * MB


def wide_rows(n=4):
    rng = np.random.default_rng(0)
    data = np.ones(50 * n, np.float32)
    indices = np.sort(rng.integers(0, 4000, (n, 50)), axis=1) * 50 + np.arange(50)
    rows = sp.csr_array((data, indices.ravel().astype(np.int32),
                         50 * np.arange(n + 1, dtype=np.int32)), shape=(n, 200_100))
    return rows, np.arange(n) % 50


def sparse_network(dtype="float32"):
    net = sl.Network([sl.Linear(200_100, 256, activation="relu", dtype=dtype), sl.Linear(256, 50)],
                     random_state=0, n_threads=1)
    return net.partial_fit(*wide_rows(1))


def wide_network():
    net = sl.Network([sl.Linear(20, 128), sl.LSHLinear(128, 300_000, density=0.01)],
                     random_state=0, n_threads=1)
    X = np.random.default_rng(0).standard_normal((64, 20), dtype=np.float32)
    net.partial_fit(X, np.arange(64), batch_size=16).topk(X)
    return net


def wide_index():
    W = np.random.default_rng(0).standard_normal((500_000, 64), dtype=np.float32)
    return sl.LSHIndex(sl.SimHash(12, 12), storage="bfloat16", dynamic=True, plan="sketches",
                       random_state=0, n_threads=1).fit(W)


def peak(name, most=None):
    """Save something large: memory grows by at most MAX_PEAK_BYTES meanwhile."""
    thing, save = PEAKS[name]()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        path = Path(folder) / "file"
        save(thing, path)  # what the first call keeps, such as modules
        Path("/proc/self/clear_refs").write_text("5")  # the largest size is forgotten
        before = resident("VmRSS")
        save(thing, path)
        grown, size = resident("VmHWM") - before, path.stat().st_size
    if size < 3 * MAX_PEAK_BYTES // 2:
        return 1, [f"{name}: a file of {size >> 20} MB shows nothing"]
    return 1, [] if grown <= MAX_PEAK_BYTES else [
        f"{name}: saving {size >> 20} MB took {grown >> 20} MB of memory"]


def resident(what):
    """A number of bytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


KINDS = {"allocations": allocations, "lines": lines, "moments": moments, "full_disk": full_disk,
         "kills": kills, "bits": bits, "memory": memory, "peak": peak}


def subjects(kind):
    """What a kind of fault is tried on."""
    saves = [name for name, call in calls.CALLS.items()
             if isinstance(call, calls.Save | calls.Write | calls.Shards)]
    return {"bits": ["model", "checkpoint", "deep", "deep, checkpoint", "deep, indexes",
                     "refined, calibrated", "index", "index, own ids", "index, names",
                     "converted", "quantized", "csr"],
            "memory": ["model", "checkpoint"], "peak": list(PEAKS), "full_disk": saves,
            "kills": saves}.get(kind, list(calls.CALLS))


def run(kind, name, options=None, preload=None, seconds=600):
    """Try faults in a process of its own; (number tried, findings)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                                "PYTHONFAULTHANDLER": "1"}
    if preload is not None:
        environment["LD_PRELOAD"] = str(preload)
    command = [sys.executable, "-P", str(HERE / "__main__.py"), "--child",
               json.dumps([kind, name, options or {}])]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return 0, [f"{kind} of {name}: no end after {seconds} s"]
    last = done.stdout.splitlines()[-1:] or [""]
    if done.returncode or not last[0].startswith("["):
        return 0, [f"{kind} of {name}: the process ended with {done.returncode}: "
                   f"{done.stderr[-3000:]}"]
    n, findings = json.loads(last[0])
    return n, findings


def run_kernels(preload, most=None, seconds=3600):
    """Try `faults.kernels` in a process of its own, on `most` parameters of each test."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                                "LD_PRELOAD": str(preload), "PYTHONPATH": str(HERE.parent),
                                "SPARSELSH_FAULTS": str(most or 10_000)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
         "faults.kernels", *map(str, sorted(HERE.parent.glob("test_core_*.py")))],
        env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=seconds,
        check=False)
    found = re.search(r"([\d,]+) allocations of (\d+) kernels", done.stdout)
    n = int(found[1].replace(",", "")) if found else 0
    return n, [f"kernels: {done.stdout[-3000:]} {done.stderr[-1000:]}"] if done.returncode else []
