"""The public names, by section: docs/api.md and the pages of docs/reference.

usage: python -P docs/make_api.py > docs/api.md

`SECTIONS` lists every public name once. A public name that is in no section, or a listed name that
does not exist, is an error. docs/conf.py writes the pages that `reference_pages` returns, one per
object and one per method.
"""
import importlib
import inspect
import re

import sparselsh
from sparselsh.callbacks import Callback

# Modules whose __all__ is public, besides that of sparselsh itself. estimators needs scikit-learn.
MODULES = (
    "calibration", "callbacks", "datasets", "distributed", "estimators", "hashing", "metrics",
    "protocols", "rebuild", "schedules", "torch",
)

# title: (what the section is for, its names without the leading "sparselsh.")
SECTIONS = {
    "Texts and names": ("Texts in, names and probabilities out.", (
        "Tagger", "TextVectorizer", "Recommender")),
    "Networks": ("A network is a sequence of layers with a loss.", (
        "Network", "load", "Refinement", "calibration.Calibration", "profiling.Profile")),
    "Layers": ("Dense layers, and layers that compute only the neurons that hashing finds.", (
        "Linear", "LSHLinear")),
    "Losses": ("Over all outputs or over an active set. `Network` also takes their short names.", (
        "SoftmaxCrossEntropy", "BinaryCrossEntropy", "MeanSquaredError")),
    "Optimizers": ("They update the rows of weights that a batch touches.", (
        "SGD", "Adam", "CustomOptimizer")),
    "Schedules": ("The learning rate, and for some the momentum, over a training.", (
        "schedules.OneCycle", "schedules.Cosine", "schedules.Linear", "schedules.Step",
        "schedules.WarmUp")),
    "Rebuild policies": ("When a layer rebuilds its hash tables or sketches.", (
        "rebuild.AtOnce", "rebuild.Exponential", "rebuild.Every", "rebuild.OnDrift",
        "rebuild.Frozen")),
    "Callbacks": ("What happens beside the steps of a training.", (
        "callbacks.Callback", "callbacks.EarlyStopping", "callbacks.BestModel",
        "callbacks.Checkpoint", "callbacks.Log", "callbacks.StopOnInterrupt",
        "callbacks.ActiveSet")),
    "Protocols": ("What parts of your own need; the library gives no base classes.", tuple(
        f"protocols.{name}" for name in (
            "HashFamily", "SamplingPolicy", "Neurons", "Loss", "UpdateRule", "Schedule"))),
    "scikit-learn estimators": ('They need scikit-learn: `pip install "sparselsh-nn[sklearn]"`.', (
        "estimators.LSHClassifier", "estimators.LSHRegressor")),
    "Pretrained networks": ("Convert a network that was trained elsewhere, for inference.", (
        "from_torch", "from_onnx", "from_file", "from_sklearn", "from_fasttext", "from_implicit",
        "InferenceNetwork", "OnnxNetwork", "EstimatorNetwork", "FactorNetwork",
        "TextNetwork",
        "ConversionReport", "torch.accelerate", "torch.restore", "torch.to_torch")),
    "Search": ("Maximum inner product search over the rows of a matrix.", ("LSHIndex",)),
    "Hash families": ("How a vector becomes a bucket number of a table.", (
        "SimHash", "CrossPolytope", "DWTA", "MinHash", "choose_bits_and_tables")),
    "Data files": ("Readers and writers of sparse rows with labels.", (
        "datasets.read_xmc", "datasets.write_xmc", "datasets.open_csr", "datasets.write_csr",
        "datasets.convert_xmc", "datasets.convert_parquet", "datasets.read_vec", "datasets.CSRFile",
        "datasets.FileFormatError")),
    "Metrics": ("They compare ranked ids with true labels.", (
        "metrics.precision_at_k", "metrics.recall_at_k", "metrics.ndcg_at_k", "metrics.psp_at_k",
        "metrics.propensities", "metrics.neighbour_recall")),
    "Metrics of probabilities": ("They compare probabilities with true labels.", (
        "metrics.expected_calibration_error", "metrics.calibration_curve", "metrics.log_loss",
        "metrics.brier_score", "metrics.micro_f1", "calibration.calibrate",
        "calibration.plot_reliability")),
    "Several processes": ("Networks that processes train and use together.", (
        "distributed.ShardedNetwork", "distributed.load", "distributed.split",
        "distributed.Checkpoint", "distributed.open_rows",
        "distributed.RowFolder", "distributed.group", "distributed.solo", "distributed.AsIf",
        "distributed.Part", "distributed.Front",
        "distributed.estimate", "distributed.Group", "distributed.DistributedError")),
    "Threads": ("The number of threads of all kernels.", ("get_num_threads", "set_num_threads")),
    "Reproducible results": ("The same bits on every processor.", (
        "get_reproducible", "set_reproducible")),
}

# What users call has a numpydoc docstring with one of these sections. A method that parts of the
# library call on each other, with trusted input, has a plain sentence; it gets no page.
USER_SECTION = re.compile(r"^(Parameters|Returns|Yields|Raises)\n-+$", re.MULTILINE)


# -- names and members -----------------------------------------------------------------------------


def find(name):
    """The object of a public name, without the leading "sparselsh."."""
    module, _, last = f"sparselsh.{name}".rpartition(".")
    return getattr(importlib.import_module(module), last)


def public_names():
    """All names that must be in a section: of sparselsh, then of its modules if not found there."""
    top = {name for name in sparselsh.__all__ if name != "__version__" and name not in MODULES}
    in_modules = set()
    for place in MODULES:
        module = importlib.import_module(f"sparselsh.{place}")
        in_modules |= {f"{place}.{name}" for name in module.__all__
                       if name not in top or getattr(module, name) is not getattr(sparselsh, name)}
    return top | in_modules


def check_sections():
    """Raise ValueError unless the sections list each public name exactly once."""
    listed = [name for _, names in SECTIONS.values() for name in names]
    if repeated := sorted({name for name in listed if listed.count(name) > 1}):
        raise ValueError(f"SECTIONS of docs/make_api.py lists {', '.join(repeated)} twice")
    if missing := sorted(public_names() - set(listed)):
        raise ValueError(f"add {', '.join(missing)} to a section of SECTIONS in docs/make_api.py")
    for name in listed:
        try:
            find(name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"SECTIONS of docs/make_api.py lists {name}, which does not exist: "
                             f"{error}") from None


def members(cls):
    """(name, member) of the public methods and properties with a docstring, inherited ones too."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("sparselsh")]
    names = dict.fromkeys(name for base in reversed(bases) for name in vars(base))
    for name in names:
        member = inspect.getattr_static(cls, name)
        if name.startswith("_") or not is_for_users(member):
            continue
        # the training calls these: documented once, at Callback
        if issubclass(cls, Callback) and cls is not Callback and name in vars(Callback):
            continue
        if isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member):
            yield name, member


def is_for_users(member):
    """Whether a method or property has a docstring as users need it."""
    text = inspect.getdoc(plain(member)) or ""
    return bool(text) if isinstance(member, property) else bool(USER_SECTION.search(text))


def is_shape(thing):
    """Whether the class is a protocol or a named tuple, which users do not make."""
    return inspect.isclass(thing) and (getattr(thing, "_is_protocol", False)
                                       or issubclass(thing, tuple))


def plain(member):
    """The function of a class method or a static method; others as they are."""
    return getattr(member, "__func__", member)


def is_exception(thing):
    """Whether the object is an exception class."""
    return inspect.isclass(thing) and issubclass(thing, Exception)


# -- docs/api.md -----------------------------------------------------------------------------------


def sentence(thing):
    """First sentence of the docstring, on one line."""
    text = inspect.getdoc(thing) or ""
    text = " ".join(text.split("\n\n")[0].split())
    text = re.split(r"(?<=[.:;]) (?=[A-Z])", text)[0].rstrip(".:;")
    text = re.sub(r":\w+:`([^`<]*) <[^`]*>`", r"`\1`", text)
    return re.sub(r":\w+:`[~.]*([^`]*)`", r"`\1`", text).replace("``", "`").replace("|", "\\|")


def signature(thing):
    """The arguments, without their types and what cannot be shown."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "(...)"
    bare = [given.replace(annotation=given.empty) for given in found.parameters.values()]
    found = found.replace(parameters=bare, return_annotation=found.empty)
    return re.sub(r" object at 0x\w+", "", str(found))


def arguments(thing):
    """The signature as a call shows it."""
    text = signature(plain(thing))
    return re.sub(r"^\((self|cls)(, |\))", lambda found: "(" if found[2] == ", " else "()", text)


def overview():
    """The text of docs/api.md."""
    lines = [
        "# API", "",
        "Made by `python -P docs/make_api.py`. The docstrings say more: `help(sparselsh.Network)`.",
        "`sl` is `sparselsh`, `sl.__version__` its version. Import `sparselsh.estimators` and",
        "`sparselsh.torch` by their names.",
    ]
    for title, (purpose, names) in SECTIONS.items():
        lines += ["", f"## {title}", "", purpose, "", "| | |", "|---|---|"]
        for name in names:
            thing = find(name)
            lines.append(row(f"sl.{name}", thing))
            if inspect.isclass(thing) and not is_exception(thing):
                lines += [f"| &emsp;{row('.' + at, member)[2:]}" for at, member in members(thing)]
    return "\n".join(lines)


def row(name, thing):
    """A row of a table: what is typed, and what it is."""
    if is_exception(thing) or isinstance(thing, property) or is_shape(thing):
        called = ""
    elif inspect.isclass(thing) and thing.__init__ is object.__init__:
        called = "()"
    else:
        called = arguments(thing)
    return f"| `{name}{called}` | {sentence(plain(thing))} |"


# -- docs/reference --------------------------------------------------------------------------------


def reference_pages():
    """{file name: text} of the reference: an index, a page per object and per method."""
    pages, index = {}, [
        "API reference", "=" * 13, "",
        "Every public object and method has a page of its own.",
        "``sparselsh.__version__`` is the version.",
        "Import ``sparselsh.estimators`` and ``sparselsh.torch`` by their names.", "",
        ".. currentmodule:: sparselsh", "",
    ]
    for title, (purpose, names) in SECTIONS.items():
        full = [f"sparselsh.{name}" for name in names]
        purpose = purpose.replace("`", "``")
        index += ["", title, "-" * len(title), "", purpose, "", *summary(full), "", *toctree(full)]
        for name in names:
            pages |= object_pages(name)
    for place in MODULES:
        index += ["", f".. py:module:: sparselsh.{place}"]
    pages["index.rst"] = "\n".join(index) + "\n"
    return pages


def object_pages(name):
    """The page of a function, or those of a class and its methods."""
    thing, full = find(name), f"sparselsh.{name}"
    if not inspect.isclass(thing):
        return {f"{full}.rst": heading(full) + f".. autofunction:: {full}\n"}
    if is_exception(thing):
        return {f"{full}.rst": heading(full) + f".. autoexception:: {full}\n"}
    found = list(members(thing))
    methods = [f"{full}.{at}" for at, member in found if not isinstance(member, property)]
    lines = [f".. autoclass:: {full}", ""]
    if methods:
        short = [f"~{at}" for at in methods]
        lines += [".. rubric:: Methods", "", *summary(short), "", *toctree(methods), ""]
    properties = [f"{full}.{at}" for at, member in found if isinstance(member, property)]
    if properties:
        lines += [".. rubric:: Properties", ""]
        for at in properties:
            lines += [f".. autoproperty:: {at}", ""]
    pages = {f"{full}.rst": heading(full) + "\n".join(lines)}
    for at in methods:
        pages[f"{at}.rst"] = heading(at) + f".. automethod:: {at}\n"
    return pages


def heading(name):
    """The title of a page."""
    return f"{name}\n{'=' * len(name)}\n\n"


def summary(names):
    """A table of names with the first sentences of their docstrings."""
    return [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]


def toctree(names):
    """The pages of these names below this one, under the last part of their names."""
    entries = (f"   {name.rpartition('.')[2]} <{name}>" for name in names)
    return [".. toctree::", "   :hidden:", "", *entries]


if __name__ == "__main__":
    check_sections()
    print(overview())
