"""Write docs/api.md: the public names with the first sentence of their docstrings.

usage: python -P docs/make_api.py > docs/api.md
"""
import inspect
import re

import sparselsh
import sparselsh.torch
from sparselsh import (
    callbacks,
    datasets,
    estimators,
    hashing,
    losses,
    metrics,
    optim,
    pretrained,
    profiling,
    rebuild,
    schedules,
)
from sparselsh.index import _lsh_index
from sparselsh.inference import _network, _report
from sparselsh.layers import _linear, _lsh_linear
from sparselsh.network import _network

MODULES = {
    "Networks": network, "Layers": layers, "Layers by hashing": lsh_layers, "Losses": losses, "Optimizers": optim,
    "Schedules": schedules, "When tables are rebuilt": rebuild, "Profiles": profiling,
    "Pretrained networks": pretrained, "Networks that are served": inference,
    "Layers of PyTorch models": sparselsh.torch, "Conversion reports": report,
    "Index": index, "Hash families": hashing, "Data": datasets, "Metrics": metrics, "Callbacks": callbacks,
    "scikit-learn": estimators,
}
# methods that the parts of the library call each other by: trusted input, subject to change
INTERNAL = {"rebuild", "refresh", "candidates", "best", "default_candidates", "Linear.initialize",
            "LSHLinear.initialize", "take_first_weights", "Refinement.fit", "Refinement.topk",
            "add_to", "tensors", "restore", "initialized", "forward",
            "updated", "prepare", "share_computed", "config", "from_config", "settle", "step", "n_states", "read",
            "index_state", "restore_index", "copy_weights", "take_weights", "arrays_of", "take_arrays",
            "LSHIndex.state", "take_state", "share", "runs_last",
            "look_for", "state", "from_state", "checked", "hidden", "architecture", "start",
            "momentum_at", "plan_report", "fresh", "drift", "insert", "output_share", "planned", "search_of_one"}


def sentence(thing):
    """First sentence of the docstring, on one line."""
    text = inspect.getdoc(thing) or ""
    text = " ".join(text.split("\n\n")[0].split())
    text = re.split(r"(?<=[.:;]) (?=[A-Z])", text)[0].rstrip(".:;")
    return re.sub(r":\w+:`[~.]*([^`]*)`", r"`\1`", text).replace("``", "`").replace("|", "\\|")


def signature(thing):
    """The arguments, without their types and what cannot be shown."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "(...)"
    plain = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    found = found.replace(parameters=plain, return_annotation=found.empty)
    return re.sub(r" object at 0x\w+", "", str(found))


def arguments(thing):
    """The signature as a call shows it."""
    return signature(thing).replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")


def entries(cls):
    """Name, arguments and meaning of the public methods and properties that the class itself defines."""
    for name, member in vars(cls).items():
        if (name.startswith("_") or INTERNAL & {name, f"{cls.__name__}.{name}"}
                or (name == "topk" and cls is not _network.Network)):
            continue
        if isinstance(member, property) and member.__doc__:
            yield name, sentence(member)
        elif isinstance(member, classmethod):
            yield f"{name}{arguments(member.__func__)}", sentence(member.__func__)
        elif inspect.isfunction(member) and member.__doc__:
            yield f"{name}{arguments(member)}", sentence(member)


def main():
    """Print the page."""
    print("# API\n\nMade by `python -P docs/make_api.py`. The docstrings say more: `help(sparselsh.Network)`.\n"
          "`sl` is `sparselsh`.\n")
    print("| | |\n|---|---|")
    for function in (sparselsh.get_num_threads, sparselsh.set_num_threads):
        print(f"| `sl.{function.__name__}{arguments(function)}` | {sentence(function)} |")
    print("| `sl.__version__` | The version |")
    for title, module in MODULES.items():
        print(f"\n## {title}\n\n| | |\n|---|---|")
        whole = module in (datasets, metrics, callbacks, estimators, sparselsh.torch, schedules, rebuild)
        place = f"sl.{module.__name__.rpartition('.')[2]}." if whole else "sl."
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and issubclass(thing, Exception):
                print(f"| `{place}{name}` | {sentence(thing)} |")
            elif name.endswith("Entropy") or name == "MeanSquaredError":
                print(f"| `{place}{name}()` | {sentence(thing)} |")
            else:
                print(f"| `{place}{name}{arguments(thing)}` | {sentence(thing)} |")
            if inspect.isclass(thing) and not issubclass(thing, Exception):
                for entry, meaning in entries(thing):
                    print(f"| &emsp;`.{entry}` | {meaning} |")


if __name__ == "__main__":
    main()
