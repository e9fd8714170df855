"""Run each benchmark of bench/benchmarks once, without asv, and print its figure.

usage: python -P bench/once.py [PART OF A NAME]
"""
import importlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

MODULES = ("import_time", "kernels", "index", "train")


def fresh(code, setup="pass"):
    """Seconds that `code` takes in a new process."""
    timed = (f"{setup}\nimport time\nstart = time.perf_counter()\n{code}\n"
             "print(time.perf_counter() - start)")
    done = subprocess.run([sys.executable, "-P", "-c", timed], check=True, capture_output=True)
    return float(done.stdout)


def run(name, call, args=()):
    """Print the figure of one benchmark."""
    kind = name.rpartition(".")[2].partition("_")[0]
    if kind == "timeraw":
        code = call()
        seconds = fresh(*(code if isinstance(code, tuple) else (code,)))
        figure = f"{1e3 * seconds:12.2f} ms"
    elif kind == "track":
        figure = f"{call(*args):12.4g} {getattr(call, 'unit', '')}"
    else:
        call(*args)  # the first call pays for new memory
        start = time.perf_counter()
        call(*args)
        figure = f"{1e3 * (time.perf_counter() - start):12.2f} ms"
    print(f"{name + str(args or ''):<48}{figure}", flush=True)


def main(wanted=""):
    for module_name in MODULES:
        module = importlib.import_module(f"benchmarks.{module_name}")
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) != module.__name__:
                continue
            if name.startswith("timeraw_") and wanted in f"{module_name}.{name}":
                run(f"{module_name}.{name}", member)
            if not isinstance(member, type):
                continue
            benchmarks = [n for n in vars(member) if n.startswith(("time_", "track_"))
                          and wanted in f"{module_name}.{name}.{n}"]
            params = [member.params] if hasattr(member, "params") else []
            for args in itertools.product(*params) if benchmarks else ():
                case = member()
                case.setup(*args)
                for benchmark in benchmarks:
                    run(f"{module_name}.{name}.{benchmark}", getattr(case, benchmark), args)


if __name__ == "__main__":
    main(*sys.argv[1:])
