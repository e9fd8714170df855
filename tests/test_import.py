"""What importing does, which package may import which, and who may use whose private names."""
import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import sparselsh

ROOT = Path(sparselsh.__file__).parent

# A row imports from rows below it only; the packages and modules of a row do not import each other.
ROWS = [
    {"__main__"},
    {"cli"},
    {"serving"},
    {"__init__"},
    {"estimators"},
    {"text"},
    {"torch", "_recipe", "distributed"},
    {"network"},
    {"pretrained", "training", "profiling"},
    {"layers", "inference"},
    {"index", "datasets", "optim", "callbacks", "calibration"},
    {"hashing", "rebuild", "schedules", "metrics", "refinement", "losses", "_gradients"},
    {"_threads", "_files", "_signals", "_reproducible", "protocols"},
    {"_validation"},
    {"_arrays", "_display", "_resources"},
    {"_version"},
    {"_core"},
]
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.name != "_version.py")


def name_of(path):
    """Path of a source file within the package, such as "index/_engine"."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def package_of(name):
    """The entry of ROWS that a file belongs to."""
    return name.partition("/")[0]


def is_for_annotations(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path, annotations):
    """Set of (file, name) pairs that a source file imports from this package.

    Without `annotations` only those that run, wherever they stand. A name that is a module is part
    of the file, and the name of what is imported from it is then None.
    """
    found = set()
    for node in statements(tree_of(path), annotations):
        if isinstance(node, ast.Import):
            if any(alias.name.partition(".")[0] == "sparselsh" for alias in node.names):
                found.add(("__init__", None))
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {resolved(folder, alias.name) for alias in node.names}
    return found


def statements(node, annotations):
    """All nodes below one; without `annotations` none of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if annotations or not is_for_annotations(child):
            yield child
            yield from statements(child, annotations)


def resolved(folder, name):
    """The file that `from folder import name` reads, and the name in it or None."""
    for place, rest in ((folder / name, None), (folder, name)):
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.exists():
                return name_of(path), rest
    inside = folder.relative_to(ROOT).as_posix()
    return ("_core/" + name if inside == "_core" else inside.replace(".", "__init__")), name


def row_of(name):
    return next(i for i, row in enumerate(ROWS) if package_of(name) in row)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down(path):
    own = name_of(path)
    for name, _ in imports(path, annotations=False):
        if package_of(name) != package_of(own):
            assert row_of(own) < row_of(name), f"{own} imports {name}"


def test_the_table_is_whole():
    in_table = set().union(*ROWS)
    there = {package_of(name_of(path)) for path in SOURCES} | {"_version"}
    assert there == in_table


def circle(edges):
    """A circle of a graph, as a list of nodes, or None."""
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return [*trail[trail.index(node):], node]
        if node in done:
            return None
        trail.append(node)
        found = next(filter(None, map(visit, sorted(edges.get(node, ())))), None)
        trail.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(edges))), None)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None


@pytest.mark.parametrize("annotations", [False, True], ids=["at run time", "in annotations too"])
def test_packages_have_no_circle(annotations):
    edges = {}
    for path in SOURCES:
        own = package_of(name_of(path))
        others = {package_of(name) for name, _ in imports(path, annotations)}
        edges.setdefault(own, set()).update(others - {own})
    found = circle(edges)
    assert found is None, " imports ".join(found)


@pytest.mark.parametrize("annotations", [False, True], ids=["at run time", "in annotations too"])
def test_files_of_a_package_have_no_circle(annotations):
    edges = {}
    for path in SOURCES:
        own = name_of(path)
        edges[own] = {name for name, _ in imports(path, annotations)
                      if package_of(name) == package_of(own) and name != own}
    found = circle(edges)
    assert found is None, " imports ".join(found)


def test_a_package_is_imported_by_its_front_door():
    # a public package may change its private files without a look at who uses them
    for path in SOURCES:
        own = name_of(path)
        for name, imported in imports(path, annotations=True):
            package, _, file = name.partition("/")
            if package in (package_of(own), "_arrays", "_core") or own.startswith("__"):
                continue
            parts = [part for part in file.split("/") if part != "__init__"]
            is_private = any(part.startswith("_") for part in parts)
            assert not is_private, f"{own} imports {name}"
            is_dunder = imported is not None and imported.startswith("__")
            assert imported is None or is_dunder or not imported.startswith("_"), (
                f"{own} imports {imported} from {name}")


def private_names(tree):
    """Names with one underscore that a file defines: attributes of self, methods, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def foreign_names(tree, known):
    """Uses of private names of objects other than self, which `known` does not hold."""
    others = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
              for alias in node.names}  # modules that are not ours
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"} | others
        is_dunder = node.attr.endswith("__")
        if not is_own and not is_dunder and node.attr not in known:
            yield f"{ast.unparse(node)} (line {node.lineno})"


def test_private_names_stay_in_their_package():
    trees = {name_of(path): tree_of(path) for path in SOURCES}
    defined = {}
    for name, tree in trees.items():
        defined.setdefault(package_of(name), set()).update(private_names(tree))
    for name, tree in trees.items():
        modules = {imported for _, imported in imports(ROOT / f"{name}.py", annotations=True)}
        known = defined[package_of(name)] | modules | {"_replace", "_fields", "_asdict"}
        found = list(foreign_names(tree, known))
        assert not found, f"{name}: {', '.join(found)}"


def test_a_foreign_name_is_found():
    tree = ast.parse("network._rng.random(); self._own = other._own; cls._made()")
    assert list(foreign_names(tree, set(private_names(tree)))) == ["network._rng (line 1)"]


def test_layers_and_optimizers_do_not_know_each_other():
    uses = {}
    for path in SOURCES:
        names = {package_of(name) for name, _ in imports(path, annotations=False)}
        uses.setdefault(package_of(name_of(path)), set()).update(names)
    for name in ("layers", "losses", "index"):
        assert "optim" not in uses[name]
    assert uses["optim"] == {"_validation", "_core", "_arrays", "_display", "schedules"}


def test_each_package_opens_with_a_map_of_itself():
    for path in SOURCES:
        if path.name != "__init__.py" or path.parent in (ROOT, ROOT / "_core"):
            continue
        text = ast.get_docstring(tree_of(path)) or ""
        files = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
        folders = {p.parent.name for p in path.parent.glob("*/__init__.py")}
        missing = sorted(name for name in files | folders if name not in text)
        assert not missing, f"{name_of(path)} does not say what {', '.join(missing)} is for"


def test_the_core_imports_nothing_of_the_package():
    for path in [*(ROOT / "_core").glob("*.py"), *(ROOT / "_core").glob("*.pyx")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"], ["cimport"]):
                assert not words[1].startswith(("..", "sparselsh")), f"{path.name}: {line}"


def run(code, **environment):
    """What the code prints in a new interpreter; a variable given as None is not set there."""
    env = {key: value for key, value in (os.environ | environment).items() if value is not None}
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], env=env,
                          capture_output=True, text=True)
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
        from sparselsh import _resources
        n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert sparselsh.get_num_threads() == min(n, _resources.processor_quota() or n)"""
    run(code, OMP_NUM_THREADS=given)


def test_the_public_names_are_there_sorted_and_documented():
    names = sparselsh.__all__
    assert len(set(names)) == len(names)
    for name in names:
        public = getattr(sparselsh, name)
        assert isinstance(public, str) or public.__doc__
