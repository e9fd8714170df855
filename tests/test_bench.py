"""The scripts of bench/ run, on small data: a change of internals does not leave them behind.

What they measure is not looked at. Each script runs in a process of its own.
"""
import ast
import asyncio
import importlib
import inspect
import json
import lzma
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import sparselsh as sl

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
N_FEATURES, N_LABELS = 500, 3000  # so many labels that the network hashes

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the checkout with bench/ is not here")

# arguments of a script, and what is in its output; the files are those of `folder`
RUNS = [
    ("accuracy.py train.txt test.txt --only sparselsh --seeds 0 --rounds 1 --threads 1",
     r"\| sparselsh \| \d"),
    ("answers.py . --sets tags --seeds 1 --threads 1", r"(?s)tags.* \d\.\d+"),
    ("cells.py layer.npz", r"k-means, +256 cells: +[01]\.\d"),
    ("certify.py large.npz --k 5 2000 --confidences 0.99 --queries 5",
     r"\| permuted \| 2000 \| 0.99 \| 1.0000000 \|"),
    ("changes.py layer.npz --changes 100", r"\| changed \| [01]\.\d"),
    ("compute_dtype.py train.txt test.txt --hidden 16 --epochs 1 --seeds 0",
     r"\| bfloat16 \| \d"),
    ("deep.py mnist digits.txt digits.txt --epochs 1 --threads 1 --only sparse",
     r"\| sparse \| \d"),
    (["demo_features.py", "one weight", "--root", str(Path(asyncio.__file__).parent)],
     r"one weight +P@1 +\d"),
    ("digests.py digests.json --threads 1 --only hashing", r"\d+ digests for each of 1 threads"),
    ("distributed.py plan train.txt --hidden 16", r"hidden 512, batch 256: +[\d.]+ ms measured"),
    ("equal_steps.py train.txt test.txt --steps 3 --hidden 16 --lrs 0.01 --threads 1",
     r"a dense step of this library costs [\d.]+ hashed ones"),
    ("estimates.py layer.npz --queries 5", r"\| permuted \|"),
    ("filtered.py layer.npz --queries 8 --fractions 0.1", r"\| exclude \| 10.0% \| per query \|"),
    ("gemm.py 1 1", r"active_update +[\d.]+ GF/s in float32"),
    ("hash_families.py 16 64", r"MinHash\(.*\) +\d"),
    ("make_factors.py pixels train.txt test.txt pixels.npz", "pixels.npz: 400 rows x 80"),
    ("make_layers.py train.txt test.txt made.npz --hidden 8 --epochs 1", "60 neurons x 8"),
    ("nearest.py train.txt test.txt --queries 8 --rounds 1 --only sparselsh",
     r"\| sparselsh \| 0.99 \| [01]\.\d"),
    ("new_tags.py --data debian-packages.jsonl.xz --seeds 0", r"(?m)^0 +\d+ +[01]\.\d"),
    ("once.py kernels.TopK", r"kernels\.TopK\.time_\w+.* ms"),
    (["plans.py", "--check", "--rounds", "1", "--only", "256 x 512, batch 64, 5% in, 5% out"],
     r"256 x 512, batch 64, 5% in, 5% out +ms: dense"),
    ("probing.py layer.npz", r"chosen: SimHash"),
    ("promise.py layer.npz --queries 8 --k 5 --recalls 0.95",
     r"\| 0.95 \| without \| analogies \| 5 \| [01]\.\d"),
    ("published.py train.txt test.txt --only mongoose --epochs 1 --threads 1",
     r"\| mongoose \| \d"),
    ("recipe.py train.txt test.txt --hidden 16 --negatives 5 --threads 1", r"\| 5 \| \d"),
    ("reproducible.py train.txt test.txt --hidden 16 --epochs 1 --repeats 1",
     r"\| across-machines \| \d"),
    ("retrieval.py layer.npz --only sparselsh --queries 5 --repeats 1",
     r"sparselsh 0.95 own setting +\d"),
    ("roofline.py wide.txt --hidden 16 --batch-size 64 --steps 5 --density 0.05 "
     "--compute-dtype bfloat16 --second-moment row", r"\| sign_codes \|"),
    ("routing.py large.npz --steps 0", r"\| mean of the neurons \| \d"),
    ("scaling.py train.txt --hidden 16 --pairs 1 --rows 100", r"all: 1 pairs, medians [\d,]+"),
    ("serve.py tagger.safetensors packages.jsonl --requests 20 --clients 2 --workers 1",
     "20 requests of 2 clients, 1 texts each, 1 workers: 0 errors"),
    ("sessions.py sessions.txt sessions.txt --seeds 0", r"\| item-kNN \| \d"),
    ("storage.py train.txt test.txt --hidden 16 --epochs 1 --seeds 1 --threads 1 --only float32",
     r"\| float32 \| \d"),
    ("text.py --data debian-packages.jsonl.xz --threads 1", r"sparselsh +[01]\.\d"),
    ("train.py train.txt test.txt --only sparselsh --epochs 1 --threads 1 --hidden 16",
     r"sparselsh +\d+\.\d"),
]


NEEDS = {"answers.py": ["sklearn"], "retrieval.py": ["threadpoolctl"],
         "serve.py": ["starlette", "uvicorn", "httptools"]}
NOT_RUN = {
    "answers_rivals.py": "answers.py runs it in an interpreter that has PECOS or Omikuji",
    "common.py": "a module of the scripts",
    "guards.py": "trains a network of 20,000 labels, for ten seconds",
    "make_language_model.py": "needs transformers and tokenizers",
    "make_pretrained.py": "trains with PyTorch, which takes seconds to load",
    "mlp_rivals.py": "a module of pretrained.py and small.py",
    "pretrained.py": "compares with PyTorch what make_pretrained.py has trained",
    "pretrained_models.py": "needs networks that others have trained, or takes long",
    "read_xmc.py": "one public function beside scikit-learn, which takes seconds to load",
    "report.py": "runs other scripts for minutes; its page is tested below",
    "report_page.py": "a module of report.py",
    "report_sections.py": "a module of report.py",
    "serving.py": "measures public functions, in five processes",
    "small.py": "compares with PyTorch, which takes seconds to load",
    "text_lines.py": "a module of pretrained_models.py, which needs fonts and manual pages",
    "torch_networks.py": "a module of the scripts that need PyTorch",
    "xmc_rivals.py": "accuracy.py runs it",
}


def run(arguments, folder):
    """The output of a script, which has not failed."""
    name, *rest = arguments if isinstance(arguments, list) else arguments.split()
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    if name == "serve.py" and sys.platform != "linux":
        pytest.skip("reads /proc")
    # scripts that ask for this environment start again without it
    own = os.environ | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run([sys.executable, "-P", BENCH / name, *rest], cwd=folder,
                          env=own | {"OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True,
                          encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def name_of(run):
    return (run[0] if isinstance(run[0], list) else run[0].split())[0]


@pytest.mark.parametrize("arguments, wanted", RUNS, ids=map(name_of, RUNS))
def test_a_script_runs_on_small_data(arguments, wanted, folder):
    output = run(arguments, folder)
    assert re.search(wanted, output), output[-2000:]


def test_the_page_of_benchmarks_is_what_its_results_give(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    script = runpy.run_path(str(BENCH / "report_page.py"))
    document = json.loads((ROOT / "docs" / "_static" / "benchmarks.json").read_text("utf-8"))
    charts = {name: f"_static/benchmarks_{section.chart}.png"
              for name, section in script["SECTIONS"].items()
              if section.chart and "results" in document["sections"].get(name, {})}
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert script["text"](document, charts, "_static/benchmarks.json") == page


def test_every_script_is_run_or_has_a_reason():
    names = {name_of(run) for run in RUNS}
    assert not names & NOT_RUN.keys()
    assert {path.name for path in BENCH.glob("*.py")} == names | NOT_RUN.keys()


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_takes_from_the_library_exists(path):
    """Also in scripts that are not run: names that are imported, and attributes of modules."""
    tree, modules, lacking = ast.parse(path.read_text(encoding="utf-8")), {}, []

    def module(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name.startswith("sparselsh"):
                lacking.append(name)
            return None  # sparselsh.torch without PyTorch

    def attribute(owner, name):
        """The attribute, or the module of this name in a package."""
        return getattr(owner, name) if hasattr(owner, name) else module(f"{owner.__name__}.{name}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sparselsh":
                    found = module(alias.name)
                    if alias.asname or "." not in alias.name:
                        modules[alias.asname or alias.name] = found
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparselsh":
            owner = module(node.module)
            for alias in node.names if owner else ():
                found = attribute(owner, alias.name)
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if owner is not None:
                attribute(owner, node.attr)
    assert not lacking


def test_the_roofline_knows_the_arguments_of_each_kernel(monkeypatch):
    """Also of those that the network of the other test does not call."""
    monkeypatch.syspath_prepend(BENCH)
    script = runpy.run_path(str(BENCH / "roofline.py"))
    for module, name, work, _ in script["KERNELS"]:
        if work is not script["no_work"]:
            assert inspect.signature(work) == unannotated(getattr(module, name)), name


def unannotated(function):
    signature = inspect.signature(function)
    return signature.replace(return_annotation=signature.empty, parameters=[
        p.replace(annotation=p.empty) for p in signature.parameters.values()])


# ---- the files

def write_rows(path, rng, n, n_features=80, n_labels=60):
    """XMC text whose feature j mod n_features comes with the label j."""
    lines = [f"{n} {n_features} {n_labels}"]
    for j in rng.integers(n_labels, size=n):
        columns = np.unique(np.append(rng.integers(n_features, size=6), j % n_features))
        lines.append(f"{j} " + " ".join(f"{column}:1.5" for column in columns))
    path.write_text("\n".join(lines) + "\n")


def write_sessions(path, rng):
    """Sessions of five items, a row per item that follows: see bench/sessions.py."""
    lines = ["400 30 30"]
    for first in rng.integers(30, size=100):
        session = (first + np.arange(5)) % 30
        for n in range(1, 5):
            past = sorted((int(item), 0.8**age) for age, item in enumerate(session[:n][::-1]))
            lines.append(f"{session[n]} " + " ".join(f"{i}:{value:.3f}" for i, value in past))
    path.write_text("\n".join(lines) + "\n")


def write_packages(path, rng):
    """Texts of words that come with a tag, and of other words, as JSONL and as .xz of it."""
    rows = []
    for i in range(300):
        tags = sorted(set(rng.integers(40, size=2).tolist()))
        words = [*tags, *rng.integers(40, 60, size=5).tolist()]
        rows.append({"name": f"package{i}", "text": " ".join(f"word{word}" for word in words),
                     "tags": [f"tag{tag}" for tag in tags], "section": f"section{tags[0] % 5}",
                     "depends": [f"library{tag}" for tag in tags]})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    path.with_name("debian-packages.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    return rows


def write_layer(path, rng, n, d):
    """A layer as bench/make_layers.py writes it; neurons and queries are around some centres."""
    centres = 2 * rng.standard_normal((40, d), dtype=np.float32)

    def around(m):
        return centres[rng.integers(40, size=m)] + rng.standard_normal((m, d), dtype=np.float32)

    np.savez(path, W=around(n), bias=rng.standard_normal(n, dtype=np.float32), H=around(300),
             Q=around(100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all files that scripts are given."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    write_rows(folder / "train.txt", rng, 400)
    write_rows(folder / "test.txt", rng, 300)
    write_rows(folder / "wide.txt", rng, 400, N_FEATURES, N_LABELS)
    write_rows(folder / "digits.txt", rng, 300, 20, 10)
    write_sessions(folder / "sessions.txt", rng)
    packages = write_packages(folder / "packages.jsonl", rng)
    sl.Tagger(hidden=8, random_state=0).fit(
        [row["text"] for row in packages], [row["tags"] for row in packages]).save(
            folder / "tagger.safetensors")
    write_layer(folder / "layer.npz", rng, 1000, 16)
    write_layer(folder / "large.npz", rng, 8192, 64)  # for cells and codes in four bits
    return folder
