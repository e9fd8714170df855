"""What importing does, and which module may import which."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparselsh

ROOT = Path(sparselsh.__file__).parent

# A module imports from layers below its own only; the modules of one layer do not know each other.
LAYERS = [
    {"__main__"},
    {"estimators"},
    {"_estimator"},
    {"cli"},
    {"demo"},
    {"_serving_cli"},
    {"_measure", "_options"},
    {"__init__"},
    {"_recipe"},
    {"network", "pretrained"},
    {"profiling"},
    {"_checkpoint", "callbacks"},
    {"_training"},
    {"_conversion"},
    {"inference"},
    {"torch"},
    {"_served", "onnx", "_weight_files", "report"},
    {"lsh_layers", "losses", "metrics", "datasets", "_streams"},
    {"layers", "index", "optim", "csrfile", "_set_sketches"},
    {"xmctext", "rebuild", "schedules", "_gradients", "_tables", "_sketching", "_calibration", "_index_file",
     "_architecture", "_table_choice", "_label_vectors", "refinement"},
    {"hashing", "transforms", "_cells", "_storage"},
    {"_linalg", "_threads", "_files", "_plans"},
    {"_validation"},
    {"_csr"},
    {"_version", "_scipy", "_html", "plotting", "_bfloat"},
    {"_memory"},
    {"_types"},
    {"_core"},
]


def sources():
    return sorted(ROOT.glob("*.py"))


def imported(path):
    """Names of the modules of the package that a file imports when it runs, wherever it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module:
                yield node.module.split(".")[0]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ("__init__" for alias in node.names if alias.name.split(".")[0] == "sparselsh")


def layer_of(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_imports_point_down(path):
    for name in imported(path):
        # `from . import name` of what __init__ itself defines, such as __version__
        target = name if any(name in layer for layer in LAYERS) else "__init__"
        assert layer_of(path.stem) < layer_of(target), f"{path.stem} imports {name}"


def test_the_list_of_modules_is_whole():
    assert {path.stem for path in sources()} <= set().union(*LAYERS)


def test_layers_and_optimizers_do_not_know_each_other():
    imports = {path.stem: set(imported(path)) for path in sources()}
    for name in ("layers", "lsh_layers", "losses", "index"):
        assert "optim" not in imports[name]
    assert imports["optim"] == {"_validation", "_core", "_bfloat", "_memory", "_html", "schedules"}


def test_the_core_imports_nothing_of_the_package():
    for path in [*(ROOT / "_core").glob("*.py"), *(ROOT / "_core").glob("*.pyx")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"], ["cimport"]):
                assert not words[1].startswith(("..", "sparselsh")), f"{path.name}: {line}"


def run(code, **environment):
    """What the code prints in a new interpreter; a variable given as None is not set there."""
    env = {key: value for key, value in (os.environ | environment).items() if value is not None}
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_loads_no_extra():
    extras = {"sklearn", "torch", "safetensors", "matplotlib", "pandas", "onnx"}
    loaded = run("import sys, sparselsh; print(*{name.split('.')[0] for name in sys.modules})")
    assert "numpy" in loaded and not extras & set(loaded)


@pytest.mark.parametrize("given", [None, "ACTIVE", "PASSIVE"])
def test_import_leaves_the_environment_as_it_was(given):
    code = """if True:
        import os
        before = dict(os.environ)
        import sparselsh
        assert dict(os.environ) == before
        print(os.environ.get("OMP_WAIT_POLICY"))"""
    assert run(code, OMP_WAIT_POLICY=given, GOMP_SPINCOUNT=None) == [str(given)]
    assert run(code, OMP_WAIT_POLICY=None, GOMP_SPINCOUNT="5") == ["None"]


@pytest.mark.parametrize("given, n", [("1", "1"), ("3", "3"), ("2,1", "2")])
def test_the_default_number_of_threads_is_that_of_openmp(given, n):
    assert run("import sparselsh; print(sparselsh.get_num_threads())", OMP_NUM_THREADS=given) == [n]


@pytest.mark.parametrize("given", [None, "", "many"])
def test_without_a_number_every_processor_is_used(given):
    code = """if True:
        import os, sparselsh
        n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert sparselsh.get_num_threads() == n"""
    run(code, OMP_NUM_THREADS=given)


def test_the_public_names_are_there_sorted_and_documented():
    names = sparselsh.__all__
    assert len(set(names)) == len(names)
    for name in names:
        public = getattr(sparselsh, name)
        assert isinstance(public, str) or public.__doc__
