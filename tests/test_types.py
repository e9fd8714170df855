"""Types for type checkers: stubs of the compiled modules, annotations of public functions."""
import importlib.util
import inspect
from pathlib import Path

import pytest

import sparselsh

ROOT = Path(sparselsh.__file__).parent
SCRIPT = Path(__file__).parent.parent / "docs" / "make_stubs.py"


def make_stubs():
    spec = importlib.util.spec_from_file_location("make_stubs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not SCRIPT.exists(), reason="the sources are not installed")
def test_stubs_match_the_compiled_modules():
    script = make_stubs()
    if not script.CORE.is_dir():
        pytest.skip("the sources are not beside the tests")
    assert script.modules(), "there are compiled modules"
    for name in script.modules():
        stub = (script.CORE / f"{name}.pyi").read_text(encoding="utf-8")
        assert stub == script.stub(name), \
            f"{name}.pyi has other signatures: run python -P docs/make_stubs.py"


def public():
    """Yield (name, callable) of the public functions and classes."""
    for name in sparselsh.__all__:
        thing = getattr(sparselsh, name)
        if inspect.ismodule(thing):
            yield from ((f"{name}.{inner}", getattr(thing, inner)) for inner in thing.__all__)
        elif callable(thing):
            yield name, thing


def functions(name, thing):
    if inspect.isfunction(thing):
        yield name, thing
    elif inspect.isclass(thing):
        for inner, member in vars(thing).items():
            member = (inspect.unwrap(member.__func__ if isinstance(member, classmethod) else member)
                      if not isinstance(member, property) else member.fget)
            of_protocol = inner == "__init__" and getattr(thing, "_is_protocol", False)
            is_called = not inner.startswith("_") or inner == "__init__"
            if inspect.isfunction(member) and is_called and not of_protocol:
                yield f"{name}.{inner}", member


@pytest.mark.parametrize("name, thing", list(public()),
                         ids=lambda value: value if isinstance(value, str) else "")
def test_public_functions_annotate_all_arguments_and_results(name, thing):
    for place, function in functions(name, thing):
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            assert (parameter.name in ("self", "cls")
                    or parameter.annotation is not parameter.empty), f"{place}: {parameter.name}"
        assert signature.return_annotation is not inspect.Signature.empty, place


def test_the_py_typed_marker_is_installed():
    assert (ROOT / "py.typed").exists()
