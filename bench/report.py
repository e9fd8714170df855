"""Run the whole comparison and write docs/benchmarks.md from its results.

usage: python -P bench/report.py DATA_DIR [--only SECTIONS] [--quick | --full] [--threads N]
           [--pecos-python PATH] [--rivals-python PATH] [--out docs/benchmarks.md] [--resume]
       python -P bench/report.py --from-results docs/_static/benchmarks.json

DATA_DIR holds one folder per data set, with the files train.txt and test.txt (XMC text):
tib-core, eurlex57k, s20k, mnist, and with --full enwiki-cbow, diginetica and amz. Sets that are
absent are skipped, and the page names them. bench/README.md says where the sets come from and what
each section runs.

The results go to one JSON file, the charts beside it, and the page is written from that file alone;
it says what was not run. The default takes about half an hour on two cores. --quick runs every
section on small parts of the data, to see that it works; --full adds the sections and sets that
take long. Scripts of the other benchmarks do the work, in processes of their own.
"""
import argparse
import datetime
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report_page
from common import BENCH, ROOT, last_line, load_average, machine, write_json
from report_sections import SECTIONS, Skipped

QUICK_ROWS = {"train": 1500, "test": 200}
VERSIONS = "import sys; sys.path.insert(0, sys.argv[1]); import common, json; " \
           "print(json.dumps(common.versions()))"
LIBRARY = "import json, sparselsh; from sparselsh._core import _simd; " \
          "print(json.dumps([sparselsh.__version__, sparselsh.__file__, _simd.level()]))"


class Failed(Exception):
    """A script has failed; the message is the last line of its errors."""


class Context:
    """What a section may use: data, scripts, interpreters and a folder for its files."""

    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.quick, self.full, self.threads = args.quick, args.full, args.threads
        self.python = args.rivals_python  # for scripts in which the library and rivals alternate
        self.commands, self.data_sets, self.absent = [], {}, []

    def choose(self, default, quick, full=None):
        """The value for the mode of this run."""
        return quick if self.quick else full if self.full and full is not None else default

    def data(self, name):
        """(train, test) of a data set, or None where it is absent. --quick cuts it."""
        paths = {part: Path(self.args.data, name, f"{part}.txt") for part in ("train", "test")}
        if not all(path.exists() for path in paths.values()):
            self.absent.append(name)
            return None
        shapes = {}
        for part, path in paths.items():
            with open(path, encoding="ascii") as file:
                shapes[part] = [int(number) for number in file.readline().split()]
        (n_train, n_features, n_labels), (n_test, *_) = shapes["train"], shapes["test"]
        self.data_sets[name] = {"train_rows": n_train, "test_rows": n_test,
                                "features": n_features, "labels": n_labels}
        if self.quick:
            for part, n_rows in QUICK_ROWS.items():
                small = self.folder / name / f"{part}.txt"
                cut(paths[part], small, n_rows)
                paths[part] = small
        return str(paths["train"]), str(paths["test"])

    def path(self, name):
        """A file of this run that a later script reads."""
        return str(self.folder / name)

    def script(self, name, *arguments, json_file=True):
        """Run a script of bench/, or a module with "-m NAME"; return the JSON that it writes."""
        program = ["-m", name[3:]] if name.startswith("-m ") else [str(BENCH / name)]
        command = [self.python, "-P", *program, *map(str, arguments)]
        self.commands.append(self.shown(name, arguments))
        print(f"$ {self.commands[-1]}", file=sys.stderr, flush=True)
        out = self.folder / f"{len(self.commands)}.json"
        if json_file:
            command += ["--json", str(out)]
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(command, stdout=sys.stderr, stderr=errors, text=True)
            errors.seek(0)
            text = errors.read()
        sys.stderr.write(text)
        if done.returncode:
            raise Failed(f"{name}: {last_line(text) or f'exit code {done.returncode}'}")
        return json.loads(out.read_text()) if json_file else None

    def shown(self, name, arguments):
        """The command as the page prints it: with names in place of the folders of this machine."""
        names = {str(self.folder): "WORK", self.args.pecos_python: "PECOS_PYTHON",
                 self.args.rivals_python: "RIVALS_PYTHON"}
        if not self.quick:
            names[str(Path(self.args.data))] = "DATA_DIR"
        words = []
        for word in map(str, arguments):
            for path, replacement in names.items():
                word = word.replace(path, replacement)
            words.append(word if word.startswith(("WORK", "DATA_DIR")) else shlex.quote(word))
        program = name if name.startswith("-m ") else f"bench/{name}"
        return " ".join(["python -P", program, *words])


def cut(source, target, n_rows):
    """Write a file of at most n_rows evenly spaced rows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, encoding="ascii") as file:
        n, n_features, n_labels = map(int, file.readline().split())
        step = max(1, -(-n // n_rows))
        rows = [line for i, line in enumerate(file) if i % step == 0]
    with open(target, "w", encoding="ascii") as file:
        file.write(f"{len(rows)} {n_features} {n_labels}\n")
        file.writelines(rows)


# --- what the figures depend on -----------------------------------------------------------------


def run_line(*command):
    """The output of a command without the line break, or "" where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def ask(python, code, *arguments):
    """The JSON that an interpreter prints for a piece of code, or None."""
    text = run_line(python, "-P", "-c", code, *arguments)
    return json.loads(text.splitlines()[-1]) if text else None


def python_files_digest(folder):
    """One digest of all Python files of a package, to compare it with the checkout."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.py")):
        if path.name != "_version.py":  # made by the build
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def circumstances(args):
    """Commit, library, machine and versions."""
    library = ask(args.rivals_python, LIBRARY)
    if library is None:
        sys.exit(f"{args.rivals_python} cannot import sparselsh. Install this checkout there: the "
                 "library and its rivals alternate in one process")
    version, place, level = library
    same = python_files_digest(Path(place).parent) == python_files_digest(ROOT / "sparselsh")
    interpreters = {"library and rivals": args.rivals_python, "PECOS": args.pecos_python}
    return {
        "commit": run_line("git", "rev-parse", "HEAD"),
        "commit_date": run_line("git", "show", "-s", "--format=%cs", "HEAD"),
        "changed_files": bool(run_line("git", "status", "--porcelain", "--", "sparselsh", "bench")),
        "library": {"version": version, "simd_level": level, "same_as_checkout": same},
        "machine": machine(),
        "versions": {name: ask(python, VERSIONS, str(BENCH))
                     for name, python in interpreters.items()},
        "threads": args.threads,
        "mode": "quick" if args.quick else "full" if args.full else "default",
        "variables": {name: value for name, value in os.environ.items()
                      if name.startswith(("SPARSELSH_", "OMP_", "OPENBLAS_"))},
    }


# --- the run ------------------------------------------------------------------------------------


def run_section(section, args, folder):
    """The results of a section, or why there are none."""
    context = Context(args, folder)
    report = {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
              "load_before": load_average()}
    begin = time.perf_counter()
    try:
        report["results"] = section.run(context)
    except Skipped as reason:
        report["skipped"] = str(reason)
    except Failed as error:
        report["failed"] = str(error)
    return report | {
        "seconds": time.perf_counter() - begin, "load_after": load_average(),
        "commands": context.commands, "data_sets": context.data_sets, "absent": context.absent}


def rounded(value):
    """Floats with five significant digits: the file of results stays small and readable."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def arguments():
    names = "\n".join(f"  {name:<12}{section.title}{'' if section.default else ' (--full)'}"
                      for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"sections:\n{names}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", metavar="DATA_DIR")
    parser.add_argument("--only", metavar="SECTIONS", help="names, separated by commas")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true",
                      help="small parts of the data and one round, to see that every section works")
    mode.add_argument("--full", action="store_true", help="also what takes long")
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="of training and of batches; default: all cores")
    parser.add_argument("--pecos-python", metavar="PATH",
                        help="the interpreter with libpecos, which needs NumPy 1")
    parser.add_argument("--rivals-python", default=sys.executable, metavar="PATH",
                        help="the interpreter with this library and the other rivals")
    parser.add_argument("--out", default=str(ROOT / "docs" / "benchmarks.md"),
                        help="the page; results and charts go to the folder _static beside it")
    parser.add_argument("--resume", action="store_true",
                        help="keep the sections that the results hold already, if commit, machine, "
                             "versions and mode are the same")
    parser.add_argument("--from-results", metavar="FILE", help="write the page again, run nothing")
    args = parser.parse_args()
    if (args.data is None) == (args.from_results is None):
        parser.error("give DATA_DIR or --from-results FILE")
    args.pecos_python = args.pecos_python or args.rivals_python
    wanted = args.only.split(",") if args.only else [
        name for name, section in SECTIONS.items() if section.default or args.full]
    if unknown := set(wanted) - SECTIONS.keys():
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; "
                     f"there are {', '.join(SECTIONS)}")
    args.names = [name for name in SECTIONS if name in wanted]
    return args


def main():
    args = arguments()
    out = Path(args.out)
    static = out.parent / "_static"
    static.mkdir(parents=True, exist_ok=True)
    if args.from_results:
        document = json.loads(Path(args.from_results).read_text(encoding="utf-8"))
        report_page.write(document, out)
        return
    results = static / f"{out.stem}.json"
    document = {"circumstances": circumstances(args), "sections": {}}
    if args.resume and results.exists():
        known = json.loads(results.read_text(encoding="utf-8"))
        if known["circumstances"] == document["circumstances"]:
            document["sections"] = {name: section for name, section in known["sections"].items()
                                    if "results" in section}
    for name in args.names:
        if name in document["sections"]:
            continue
        print(f"=== {name}: {SECTIONS[name].title}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            document["sections"][name] = rounded(run_section(SECTIONS[name], args, folder))
        # after each section: a run takes long
        write_json(results, document)
        report_page.write(document, out)
    for name, section in document["sections"].items():
        why = section.get("failed") or section.get("skipped")
        print(f"{name}: {section['seconds']:.0f} s{f', {why}' if why else ''}", file=sys.stderr)


if __name__ == "__main__":
    main()
