"""Report how much of `_core` and of the readers the tests reach, from what .ci/coverage measured.

    python -P tests/covered.py BUILD --python coverage.json [--missing] [--at-least 95]

BUILD is the folder of a build with -Db_coverage=true, after the tests. Counted are lines, and both
ways of each branch:

- of Cython, in the functions that we wrote, `if`, `elif`, `while`, `for`, conditional expressions,
  the parts of `and` and `or`, `min` and `max`; not what Cython adds: the reading of arguments,
  checks of errors, reference counts, the loops that OpenMP divides. A function that several modules
  compile counts once;
- of C, all branches that GCC made, in the SIMD levels that this processor runs, those of the copies
  of an inlined function as one. Sources and functions that only other levels use are named and left
  out;
- of Python, what coverage.py calls branches, in the modules of READERS.
"""
import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from sparselsh._core import _simd

# The modules that read files or check what was read.
READERS = (
    "_files", "cli._files", "cli._records", "datasets._csr_file", "datasets._parquet",
    "datasets._word_vectors", "datasets._xmc_text", "distributed._folder", "index._file",
    "inference._file", "inference.readers.affine", "inference.readers.fasttext",
    "inference.readers.network_files", "inference.readers.onnx*", "inference.readers.sklearn",
    "inference.readers.torch", "inference.readers.weight_files", "network._checkpoint",
    "network._file", "pretrained", "text._file", "text._load",
)
ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "sparselsh/_core"
MARK = re.compile(r'\s*/\* "(?P<file>[^"]+\.(?:pyx|pxd))":(?P<line>\d+)$')
OURS = re.compile(r"__pyx_(?:pf|f)_9sparselsh_")  # the functions that we wrote, by Cython's names
# A condition that Cython keeps in a variable is one that we wrote. Its own checks end in an error.
CONDITION = re.compile(
    r"\s*(?:\} else )?if \((?:!?__pyx_t_\d+|unlikely\(__pyx_t_\d+\))\) (?:\{|break;)"
    r"|\s*for \(__pyx_t_\d+ = [^;]+; [^;]+; __pyx_t_\d+[+-]=\d+\) \{"
    r"|\s*switch \(__pyx_(?:v_\w+|t_\d+)\) \{")
LEFT_OUT = re.compile(r"__pyx_parallel|__PYX_ERR|likely\(!")
# Functions of C that only levels with products of bfloat16, or with AVX-512, call.
WIDE = {"simd/loops_gemm.h": ("words_of_line", "words_of_rows", "words_of_lines", "pack_b_words"),
        "simd/loops_bfloat16.h": ("word_of",),
        "simd/dispatch.c": ("runs_v4", "runs_avx_vnni", "runs_v4_vnni", "runs_v4_bf16",
                            "may_use_tiles", "runs_amx")}


class Counts:
    """Per place (file, line): how often it ran, and how often each of its branches was gone."""

    def __init__(self):
        self.lines, self.branches = defaultdict(int), defaultdict(int)

    def add(self, file, line, count, branches):
        self.lines[file, line] += count
        for key, times in branches:
            self.branches[file, line, key] += times


def measured(build):
    """Yield (folder of the object, {source: [line, ...]}) of each object of the build."""
    for notes in sorted(Path(build).rglob("*.gcno")):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["gcov", "--json-format", "--branch-probabilities", str(notes)],
                           cwd=folder, check=True, capture_output=True)
            for path in Path(folder).glob("*.gcov.json.gz"):
                found = json.loads(gzip.decompress(path.read_bytes()))
                where = Path(found.get("current_working_directory", build))
                yield notes.parent.name, {(where / file["file"]).resolve(): file["lines"]
                                          for file in found["files"]}


def marks(source):
    """Return {line of generated C: (Cython file, line)}, and the conditions among the lines."""
    places, conditions, place, in_comment = {}, set(), None, False
    for number, text in enumerate(source.read_text().splitlines(), 1):
        if found := MARK.match(text):
            # Cython names .pxd files without their folder
            name = str(CORE.relative_to(ROOT) / Path(found["file"]).name)
            place, in_comment = (name, int(found["line"])), True
        elif in_comment:
            in_comment = "*/" not in text
        elif "/* function exit code */" in text:
            place = None
        elif place is not None:
            places[number] = place
            if CONDITION.match(text) and not LEFT_OUT.search(text):
                conditions.add(number)
    return places, conditions


def lines_of(path, functions):
    """Return the lines of the definitions of these functions of C."""
    found, inside = set(), False
    for number, text in enumerate(path.read_text().splitlines(), 1):
        begins = text.startswith(("static", "MAYBE_UNUSED")) and any(
            f" {function}(" in text for function in functions)
        if begins or inside:
            found.add(number)
            inside = not (text.startswith("}") or (begins and text.endswith("}")))
    return found


def branch_keys(text, n):
    """Name n branches of a line of C; those of the copies that GCC inlines have equal names."""
    conditions = 1 + text.count("&&") + text.count("||") + text.count(" ? ")
    n_different = 2 * conditions if n % (2 * conditions) == 0 else n
    return [(n_different, i % n_different) for i in range(n)]


def kernels(build):
    """Return the counts of Cython and of C, and the names of what was left out."""
    absent = {} if {"v4-bf16", "neon-bf16"} & set(_simd.available_levels()) else WIDE
    unreachable = {CORE / name: lines_of(CORE / name, functions)
                   for name, functions in absent.items()}
    levels = {f"libloops_{name.replace('-', '_')}.a.p" for name in _simd.available_levels()}
    cython, plain, known = Counts(), Counts(), set()
    for folder, sources in measured(build):
        runs = not folder.startswith("libloops_") or folder in levels
        for source, lines in sources.items():
            if source.name.endswith(".pyx.c"):
                add_cython(cython, source, lines)
            elif CORE in source.parents:
                name = str(source.relative_to(ROOT))
                known.add(name)
                texts = source.read_text().splitlines()
                for line in lines if runs else ():
                    number = line["line_number"]
                    if number not in unreachable.get(source, ()):
                        keys = branch_keys(texts[number - 1], len(line["branches"]))
                        plain.add(name, number, line["count"],
                                  [(key, branch["count"]) for key, branch
                                   in zip(keys, line["branches"], strict=True)])
    left_out = sorted(known - {file for file, _ in plain.lines})
    return cython, plain, left_out + [f"{function}()" for functions in absent.values()
                                      for function in functions]


def add_cython(counts, source, lines):
    places, conditions = marks(source)
    numbers = defaultdict(int)  # of the conditions of a line
    for line in sorted(lines, key=lambda line: line["line_number"]):
        number = line["line_number"]
        if number not in places or not OURS.match(line.get("function_name", "")):
            continue
        branches = []
        if number in conditions and line["branches"]:
            numbers[places[number]] += 1
            branches = [((numbers[places[number]], i), branch["count"])
                        for i, branch in enumerate(line["branches"])]
        counts.add(*places[number], line["count"], branches)


def readers(path):
    """Return the counts of the Python modules that read files."""
    counts = Counts()
    patterns = [f"sparselsh/{name.replace('.', '/')}.py" for name in READERS]
    for name, found in json.loads(Path(path).read_text())["files"].items():
        short = "sparselsh/" + name.split("sparselsh/")[-1]
        if not any(Path(short).match(pattern) for pattern in patterns):
            continue
        for key, times in (("executed", 1), ("missing", 0)):
            for line in found[f"{key}_lines"]:
                counts.add(short, line, times, [])
            for begin, end in found[f"{key}_branches"]:
                counts.branches[short, begin, end] += times
    return counts


def percent(values):
    return 100 * sum(value > 0 for value in values) / max(1, len(values))


def report(title, counts, show_missing):
    """Print a table; return the percentages of lines and of branches."""
    print(f"\n{title:44} {'lines':>6} {'%':>6} {'branches':>9} {'%':>6}")
    files = sorted({file for file, _ in counts.lines})
    rows = [(file, [n for (f, _), n in counts.lines.items() if f == file],
             [n for (f, *_), n in counts.branches.items() if f == file]) for file in files]
    rows.append(("all", list(counts.lines.values()), list(counts.branches.values())))
    for name, lines, branches in rows:
        print(f"{name:44} {len(lines):6,} {percent(lines):6.1f} {len(branches):9,} "
              f"{percent(branches):6.1f}")
        if show_missing and name != "all":
            never = [line for (f, line), n in sorted(counts.lines.items()) if f == name and not n]
            half = sorted({line for (f, line, _), n in counts.branches.items()
                           if f == name and not n} - set(never))
            if never:
                print("    lines:", *never)
            if half:
                print("    one way:", *half)
    return percent(rows[-1][1]), percent(rows[-1][2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", help="folder of the build that measures")
    parser.add_argument("--python", help="what `coverage json` wrote")
    parser.add_argument("--missing", action="store_true", help="list what was not reached")
    parser.add_argument("--at-least", type=float, default=95, metavar="PERCENT",
                        help="of branches and lines, else the exit code is 1 (default: 95)")
    given = parser.parse_args()
    cython, plain, left_out = kernels(given.build)
    shares = [*report("_core: Cython", cython, given.missing),
              *report("_core: C", plain, given.missing)]
    if left_out:
        print("left out, as this processor does not run them:", *left_out)
    if given.python:
        shares += report("readers: Python", readers(given.python), given.missing)
    return min(shares) < given.at_least


if __name__ == "__main__":
    sys.exit(main())
