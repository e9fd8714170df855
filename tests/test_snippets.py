"""The examples of the README and of all pages run unchanged, on small data."""
import json
import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh.cli import _commands
from sparselsh.cli._arguments import parser

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
WITH_COMMANDS = [page for page in PAGES if page == "README.md" or page.startswith("docs/guide/")]
EXTRAS = ("safetensors", "sklearn", "matplotlib", "torch", "onnx", "onnxruntime")
# sizes that would take long, and their replacements here
SMALLER = {"8192": "64", "20_000": "2_000", "18_000": "1_800", "5_000": "500"}
ELSEWHERE = {  # code that is not run here, and where it is tested
    "accelerate(": "needs a layer so wide that an index gains on it: tests/test_torch_models.py"}

OF_PAGES = {"docs/guide/serving.md": ("starlette", "uvicorn")}  # further extras


def blocks(page, language):
    """Return (heading, code) of the blocks of a page, in order."""
    heading, found = "", []
    text = (ROOT / page).read_text(encoding="utf-8")
    for part in re.split(r"^(#+ [^\n]*|```\w*\n.*?^```)$", text, flags=re.M | re.S):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.startswith(f"```{language}\n"):
            found.append((heading, part.split("\n", 1)[1].removesuffix("```")))
    return found


def programs():
    """Yield (page, heading, blocks) of what runs together: a page of the guide, or a section."""
    for page in PAGES:
        found = {}
        for heading, code in blocks(page, "python"):
            together = None if page.startswith("docs/guide/") else heading
            found.setdefault(together, []).append(code)
        yield from ((page, heading, codes) for heading, codes in found.items())


def names():
    """Return the names that the examples expect to be defined."""
    rng = np.random.default_rng(0)

    def rows(n):
        X = sp.random_array((n, 40), density=0.1, format="csr", dtype=np.float32, rng=rng)
        return X, sp.csr_array(np.eye(30, dtype=np.float32)[rng.integers(30, size=n)])

    (X, Y), (X_val, Y_val), (X_more, Y_more), (X_new, _) = map(rows, (200, 50, 60, 20))
    W, b = rng.standard_normal((300, 16), dtype=np.float32), np.zeros(300, np.float32)
    H = rng.standard_normal((100, 16), dtype=np.float32)
    net = sl.Network([sl.Linear(40, 16), sl.LSHLinear(16, 30)], random_state=0)
    net.fit(X, Y, epochs=1, verbose=False)
    texts = [f"word{i} word{i % 7} word{i % 5}" for i in range(400)]
    return {
        "sl": sl, "np": np, "sp": sp, "net": net,
        "n_features": 40, "n_labels": 30, "n_in": 40, "n_hidden": 16, "n_items": 40,
        "X": X, "Y": Y, "X_val": X_val, "Y_val": Y_val,
        "X_more": X_more, "Y_more": Y_more, "X_new": X_new,
        "W": W, "b": b, "H": H, "hidden": H,
        "W1": W[:16, :].repeat(3, axis=1)[:, :40], "b1": b[:16],
        "rows": np.arange(4), "W_new": W[:9], "b_new": b[:9], "step": 3,
        "days": [1, 2], "read": lambda day: (X, Y), "stream_of_chunks": [(X, Y), (X, Y)],
        "texts": texts, "tags": np.arange(400) % 5,
        "tag_lists": [[f"tag{i % 7}", f"tag{i % 5}"] for i in range(400)],
        "sessions": [[f"item{j}" for j in row] for row in rng.integers(40, size=(300, 5))],
    }


def files(given):
    """Write the files that the examples read to the current folder."""
    records = [{"id": i, "text": text, "tags": tags} for i, (text, tags)
               in enumerate(zip(given["texts"], given["tag_lists"], strict=True))]
    for name in ("docs", "more", "new"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    sl.datasets.write_xmc("train.txt", given["X"], given["Y"])
    sl.datasets.write_xmc("train.txt.gz", given["X"], given["Y"])
    sl.datasets.write_xmc("test.txt", given["X_val"], given["Y_val"])
    sl.datasets.write_xmc("new.txt", given["X_val"], given["Y_val"])
    np.savez("X.npz", np.maximum(given["H"], 0))
    with open("packages.jsonl", "w", encoding="utf-8") as file:
        for i, text in enumerate(given["texts"]):
            row = {"text": f"{text} text editor for GNOME", "tags": given["tag_lists"][i],
                   "section": f"section{i % 3}"}
            file.write(json.dumps(row) + "\n")


def of_pytorch(given):
    """Add the models and files of the section on pretrained networks, and a PyTorch layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file
    from torch import nn

    given["model"] = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 30))
    given["linear"] = nn.Linear(16, 300)
    given["X"] = given["X"].toarray()
    W = given["W"]
    save_file({"head.fc1.weight": W[:16, :].repeat(3, axis=1)[:, :40].copy(),
               "head.fc2.weight": W.copy()}, "model.safetensors")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["y"])], "g", [x], [y],
                              [numpy_helper.from_array(np.ones((40, 9), np.float32), "W")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, "model.onnx")

    nodes = [helper.make_node("Tanh", ["x"], ["h"]), helper.make_node("MatMul", ["h", "W"], ["z"]),
             helper.make_node("Softmax", ["z"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t", "m"])
            for name in "xy")
    wide = np.random.default_rng(0).standard_normal((16, 2500), dtype=np.float32)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(wide, "W")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, "ocr.onnx")
    given["image1"] = given["H"][None]
    given["image2"] = given["image"] = given["H"][None, :60]


PREPARED = {  # a page of the guide, or a heading
    "docs/guide/deep-sparse-networks.md": lambda given: given.update(
        X=np.random.default_rng(0).standard_normal((128, 784), dtype=np.float32),
        y=np.arange(128) % 10),
    "docs/guide/trained-network.md": of_pytorch,
    "PyTorch": of_pytorch,
    "Build a network": of_pytorch,
}


def test_the_pages_with_examples_are_found():
    found = {page for page, _, _ in programs()}
    assert {"README.md", "docs/index.md", "docs/coming.md"} < found
    # the index of the guide, the FAQ and the page of the command line have no examples
    n_pages = len(list((ROOT / "docs" / "guide").glob("*.md")))
    assert sum(page.startswith("docs/guide/") for page in found) == n_pages - 3


@pytest.mark.parametrize("page, heading, codes", list(programs()),
                         ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.filterwarnings("ignore")  # warnings of the other packages that the examples use
def test_an_example_runs(page, heading, codes, tmp_path, monkeypatch):
    for extra in (*EXTRAS, *OF_PAGES.get(page, ())):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    import matplotlib
    import sklearn.datasets

    matplotlib.use("Agg")
    for number, code in enumerate(codes):
        if number == 0 or page == "README.md":  # the blocks of the README are independent
            given = names()
            files(given)
            PREPARED.get(page if heading is None else heading, lambda given: None)(given)
            groups = types.SimpleNamespace(data=given["texts"], target=given["tags"])
            monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups",
                                lambda groups=groups, **options: groups)
        if not any(words in code for words in ELSEWHERE):
            for size, less in SMALLER.items():
                code = code.replace(size, less)
            exec(compile(code, f"{page}: {heading}", "exec"), given)


def test_code_lines_of_the_pages_are_short_enough_to_be_shown_uncut():
    pages = ["CONTRIBUTING.md", "docs/index.md", "docs/quickstart.md", "docs/coming.md"]
    long = [f"{page}: {line}" for page in pages + WITH_COMMANDS for language in ("python", "sh")
            for _, code in blocks(page, language) for line in code.splitlines() if len(line) > 68]
    assert long == []


def test_the_commands_of_the_guide_and_the_readme_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    given = names()
    files(given)
    lines = [line for page in WITH_COMMANDS for _, code in blocks(page, "sh")
             for line in code.replace("\\\n", " ").splitlines() if line.startswith("sparselsh ")]
    assert len(lines) > 10
    for line in lines:
        arguments = shlex.split(line, comments=True)
        assert arguments.pop(0) == "sparselsh"
        if arguments[0] == "demo":  # takes a minute: tests/test_demo.py runs it
            parser().parse_args(arguments)
            continue
        if "--layer" in arguments:  # replaces the network by weights of another program
            second = given["W"][:20, :].repeat(20, axis=1)[:, :300].copy()
            save_file({"fc1.weight": given["W"], "fc2.weight": second}, "model.safetensors")
        assert _commands.main(arguments) == 0, (line, capsys.readouterr().err)
