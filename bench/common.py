"""What the benchmark scripts share: clocks, tables, child processes, the description of a machine.

Needs the standard library and NumPy only, so that a script can import it in an environment that
holds a rival and nothing else.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent

PACKAGES = ("sparselsh-nn", "numpy", "scipy", "torch", "onnxruntime", "onnx", "faiss-cpu",
            "hnswlib", "voyager", "scann", "libpecos", "omikuji", "napkinxc", "fasttext-numpy2",
            "fasttext", "scikit-learn")


class Stopwatch:
    """Wall seconds and CPU seconds (all threads of the process) of `with` blocks, added up."""

    def __init__(self):
        self.cpu = self.wall = 0.0

    def __enter__(self):
        self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error):
        self.cpu += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


def per_call(call, inputs):
    """Wall and CPU seconds per call of `call(x)` for x in inputs."""
    with Stopwatch() as watch:
        for x in inputs:
            call(x)
    return watch.wall / len(inputs), watch.cpu / len(inputs)


def spread(values):
    """{"median", "min", "max", "n"} of some measurements."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "n": len(values)}


# --- text ---------------------------------------------------------------------------------------


def markdown_table(header, rows, left=1):
    """A Markdown table; the first `left` columns are aligned left, the others right."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, rule, *rows))


def text_table(header, rows, left=1):
    """The same in aligned columns, for a terminal."""
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table)


def write_json(path, document):
    """Write a JSON file; NumPy scalars become numbers."""
    text = json.dumps(document, indent=1, default=lambda x: x.item())
    Path(path).write_text(text + "\n", encoding="utf-8")


def log_x_axis(ax):
    """Give plotted axes of matplotlib a logarithmic x axis, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.3, which="both")


# --- processes ----------------------------------------------------------------------------------


def thread_environment(threads, passive=True):
    """The environment variables that libraries read when they are loaded.

    Threads that spin while they wait count as CPU time, and on a shared machine they slow the next
    contender down: hence OMP_WAIT_POLICY=passive. sparselsh sets its waits itself where the
    variable is not set, so its own processes may run with `passive=False`.
    """
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
                           str(threads))
    return counts | ({"OMP_WAIT_POLICY": "passive"} if passive else {})


def restart_with(variables):
    """Start the running script again, unless these environment variables are set already."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        flags = ["-P"] if sys.flags.safe_path else []
        os.execve(sys.executable, [sys.executable, *flags, *sys.argv], os.environ | variables)


def child_environment(threads, passive=True):
    """The whole environment of a child process with so many threads."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return kept | thread_environment(threads, passive)


def run_child(command, environment):
    """Run a process and return its last line of output as JSON; RuntimeError if it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(last_line(done.stderr) or f"exit code {done.returncode}")
    sys.stderr.write(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def last_line(text):
    """The last line that is not empty, where Python puts the message of an error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def peak_megabytes():
    """The largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- the machine --------------------------------------------------------------------------------


def cpuinfo(key):
    """The first value of a key in /proc/cpuinfo, or ""."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line for line in file if line.startswith(key))
            return next((line.split(":", 1)[1].strip() for line in lines), "")
    except OSError:
        return ""


def machine():
    """Processor, cores, memory and system."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    name = cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = cpuinfo("cpu family"), cpuinfo("model\t")
    return {"processor": name + (f" (family {family}, model {model})" if family else ""),
            "cores": os.cpu_count(), "memory_bytes": memory,
            "system": f"{platform.system()} {platform.machine()}"}


def versions():
    """Versions of the interpreter and of the packages of PACKAGES that are installed in it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def load_average():
    """The load of the last minute, or None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
