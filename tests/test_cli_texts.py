"""From texts and names in files to names in files, by the command alone."""
import bz2
import gzip
import io
import json
import subprocess
import sys

import numpy as np
import pytest

import sparselsh as sl
from sparselsh.cli import _commands

pytest.importorskip("safetensors")

TOPICS = {"fruit": "apple pear plum cherry", "public traffic": "car bus tram lorry",
          "music": "violin drum flute harp"}
OPTIONS = ["--hidden", "8", "--quiet"]


def records(n, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        names = sorted(rng.choice(list(TOPICS), rng.integers(1, 3), replace=False).tolist())
        words = [word for name in names for word in rng.choice(TOPICS[name].split(), 3)]
        found.append({"id": i, "text": " ".join(rng.permutation(words)), "tags": names})
    return found


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    jsonl(folder / "train.jsonl", records(600))
    jsonl(folder / "test.jsonl", records(60, seed=1))
    assert _commands.main(["train", str(folder / "train.jsonl"), "--model",
                           str(folder / "model.safetensors"), *OPTIONS]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    import shutil

    for path in trained.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *args, code=0):
    capsys.readouterr()
    found = _commands.main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def refused(capsys, *args):
    """The one line of an error."""
    try:
        _, err = run(capsys, *args, code=2)
    except SystemExit as error:
        assert error.code == 2
        err = capsys.readouterr().err
    assert err.startswith("sparselsh: error: ") and err.count("\n") == 1, err
    return err


# -- kinds of files --------------------------------------------------------------------------------


def write_as(kind, folder):
    """Write the training records as a file of a kind; its name and the options to read it."""
    rows = [row | {"tags": row["tags"][:1]} for row in records(600)]
    if kind == "jsonl.gz":
        with gzip.open(folder / "t.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n\n" for row in rows)
        return "t.jsonl.gz", []
    if kind == "no suffix":
        jsonl(folder / "t", rows)
        return "t", []
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(["n", "body", "topic"])]
        lines += [mark.join([str(row["id"]), f'"{row["text"]}\n ""x"""', row["tags"][0]])
                  for row in rows]
        (folder / f"t.{kind}").write_text("\n".join(lines) + "\n")
        return f"t.{kind}", ["--text", "body", "--label", "topic"]
    if kind == "separated":
        lines = ["text;tags".replace(";", ",")]
        lines += [f'{row["text"]},"{"| ".join(row["tags"])}"' for row in records(600)]
        (folder / "s.csv").write_text("\n".join(lines))
        return "s.csv", ["--separator", "|"]
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records(600)), folder / "t.parquet")
        return "t.parquet", []
    with bz2.open(folder / "t.txt.bz2", "wt") as file:
        for row in records(600):
            labels = " ".join("__label__" + name.replace(" ", "-") for name in row["tags"])
            file.write(f"{labels} {row['text']}\n")
    return "t.txt.bz2", []


@pytest.mark.parametrize("kind", ["jsonl.gz", "no suffix", "csv", "tsv", "separated", "parquet",
                                  "fasttext"])
def test_every_kind_of_file_is_recognized_and_learnt(kind, folder, capsys):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    name, options = write_as(kind, folder)
    out, _ = run(capsys, "train", name, "--model", "m.safetensors", "--test", name, *options,
                 "--hidden", 8, "--json", "report.json")
    assert "600 texts, 3 labels" in out
    report = json.loads((folder / "report.json").read_text())
    # where a text has one of two topics, the topics that it has are guessed
    single = kind in ("jsonl.gz", "no suffix", "csv", "tsv")
    assert report["p_at_1"] > (0.7 if single else 0.95)
    assert ("accuracy" in report) == (kind in ("csv", "tsv"))
    tagger = sl.load("m.safetensors")
    assert len(tagger.tags_) == 3 and tagger.one_per_text == (kind in ("csv", "tsv"))
    assert "P@1" in run(capsys, "evaluate", "m.safetensors", name, *options)[0]


def test_several_columns_are_joined_and_null_is_nothing(folder, capsys):
    rows = [{"a": row["text"], "b": None, "label": row["tags"][0]} for row in records(300)]
    jsonl(folder / "t.jsonl", rows)
    run(capsys, "train", "t.jsonl", "--text", "a", "--text", "b", "--model", "m.safetensors",
        *OPTIONS)
    assert sl.load("m.safetensors").one_per_text


def test_labels_that_look_like_several_are_noted_or_refused(folder, capsys):
    rows = records(300)
    jsonl(folder / "t.jsonl", [{"text": row["text"], "tags": f"{row['tags'][0]}, x"}
                               for row in rows])
    _, err = run(capsys, "train", "t.jsonl", "--model", "m.safetensors", *OPTIONS)
    assert "note: 't.jsonl': most labels contain ','" in err and "--separator ','" in err
    jsonl(folder / "u.jsonl", [{"text": row["text"], "tags": ",".join(row["tags"])}
                               for row in rows])
    err = refused(capsys, "train", "u.jsonl", *OPTIONS)
    assert "'u.jsonl': tags[" in err and "--separator" in err
    _, err = run(capsys, "train", "u.jsonl", "--separator", ",", "--model", "m.safetensors",
                 *OPTIONS)
    assert err == "" and set(sl.load("m.safetensors").tags_) == set(TOPICS)


BAD = {  # content, options, words of the message
    "a.jsonl": (b'{"text": "a", "tags": ["b"]}\n{"text"\n', [], "'a.jsonl', line 2: is no JSON"),
    "b.jsonl": (b'{"text": "a", "tags": []}\n', [], "'b.jsonl': no record has a label"),
    "c.jsonl": (b'{"body": "a", "tags": ["b"]}\n', [],
                "'c.jsonl', line 1: has no 'text', but 'body', 'tags'; give the column with --te"),
    "d.jsonl": (b'{"text": "a", "topic": "b"}\n', [], "give the column with --label"),
    "e.jsonl": (b'{"text": "a", "tags": 3}\n', [], "line 1: 'tags' must be a string or a list"),
    "f.jsonl": (b'{"text": 5, "tags": "b"}\n', [], "line 1: 'text' must be a string, got 5"),
    "g.jsonl": (b"[1]\n", [], "line 1: must be a JSON object"),
    "h.jsonl": (b"\xff\xfe\n", [], "is not UTF-8"),
    "i.jsonl": (b"", [], "holds no records"),
    "j.csv": (b"text,label\na,b\nc\n", [], "'j.csv', line 3: has 1 fields, but the first line 2"),
    "k.csv": (b'text,label\n"a,b\n', [], "is no CSV"),
    "l.csv": (b"body,label\na,b\n", [], "line 1: has no column 'text', but 'body', 'label'"),
    "m.csv": (b"text,label\na,b\n", ["--label", "x"], "has no 'x', but 'text', 'label'"),
    "n.txt": (b"__label__ a b\n", [], "'n.txt', line 1: a __label__ without a name"),
    "o.jsonl.gz": (b"{}", [], "cannot be decompressed"),
    "ab.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04", [], "'ab.jsonl.zst': is compressed by zstd; unpack"),
    "ac": (b"\x1f\x8b\x08\x00", [], "is compressed by gzip; unpack it, or give a file of gzip, bz"),
    "ad.zip": (b"PK\x03\x04", [], "is compressed by ZIP"),
    "ae.csv": (b"text,label\na,b\n", ["--separator", ""], "--separator: '' parts nothing; give a"),
    "p.parquet": (b"PAR1xxxx", [], "is no readable Parquet file"),
    "q.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--family", "DWTA"], "--family: is for rows"),
    "r.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--resume", "model.safetensors"],
                "model.safetensors: holds a network, but no training to continue"),
    "aa.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--resume", "r", "--lr", "1"],
                 "--lr: a resumed training keeps the options it was started with"),
    "s.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--early-stopping"], "needs --validation"),
    "u.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--validation", "0.6"], "fraction above 0"),
    "v.jsonl": (b'{"text": "a", "tags": "b"}\n', ["--validation", "0.1", "--hold-out", "9"],
                "leave one of them out"),
    "w.csv": (b"\n", [], "line 1: has no column 'text', but nothing"),
    "w2.csv": (b"text,label,text\na,b,c\n", [], "line 1: has 2 columns 'text'; rename all but one"),
    "w3.csv": (b"text,label,label\na,b,c\n", [], "line 1: has 2 columns 'label'; rename"),
    "x.jsonl": (b'{"text": "a", "tags": "b"}\n{"text": "a"}\n', [],
                "'x.jsonl', line 2: has no 'tags', but 'text'; give the column with --label"),
    "y.jsonl": (b'{"text": "a", "tags": [["a", "long", "list", "of", "numbers", 1]]}\n', [],
                "got [['a', 'long', 'list', 'of', 'numbers..."),
    "z.tsv": (b"text\tlabel\na\tb\tc\n", [], "'z.tsv', line 2: has 3 fields, but the first"),
    "t.txt": (b"2 3 3\n0 1:1\n1 2:1\n", ["--label", "x"], "--label: is for texts, but 't.txt'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_a_file_is_named_with_its_line(name, folder, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    content, options, words = BAD[name]
    (folder / name).write_bytes(content)
    assert words in refused(capsys, "train", name, *options)


@pytest.mark.parametrize(("columns", "options", "words"), [
    ({"body": ["a"], "tags": ["b"]}, [], "has no column 'text', but 'body', 'tags'; give it with"),
    ({"text": ["a"], "theme": ["b"]}, [], "has none of "),
    ({"text": ["a", "b"], "tags": ["b", None], "x": [1, 2]}, ["--label", "x"],
     "row 1: 'x' must be a string or a list of strings, got 1"),
    ({"text": ["a", "b"], "tags": [None, None]}, [], "no record has a label"),
])
def test_what_is_wrong_in_a_table_is_named_with_its_row(columns, options, words, folder, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    assert words in refused(capsys, "train", "t.parquet", *options)


def test_a_table_needs_pyarrow(folder, capsys, monkeypatch):
    (folder / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    err = refused(capsys, "train", "t.parquet")
    assert "'t.parquet': Parquet needs pyarrow" in err and "sparselsh-nn[parquet]" in err


def test_a_folder_is_no_file_of_records(folder, capsys):
    (folder / "rows.jsonl").mkdir()
    assert "is a folder; give a file in it" in refused(capsys, "train", "rows.jsonl")
    assert "is a folder" in refused(capsys, "predict", str(folder), "test.jsonl")


def test_empty_lines_and_missing_labels_are_passed_over(folder, capsys):
    lines = [f"{row['text']},{';'.join(row['tags'])}\n" for row in records(300)]
    (folder / "t.csv").write_text("text,label\n\n" + "\n".join(lines) + "nothing,\n")
    run(capsys, "train", "t.csv", "--separator", ";", "--model", "m.safetensors", *OPTIONS)
    assert set(sl.load("m.safetensors").tags_) == set(TOPICS)
    rows = [row if i else {**row, "tags": None} for i, row in enumerate(records(300))]
    jsonl(folder / "t.jsonl", rows)
    run(capsys, "train", "t.jsonl", "--model", "m.safetensors", *OPTIONS)
    assert set(sl.load("m.safetensors").tags_) == set(TOPICS)


def test_a_kind_that_is_given_is_not_guessed(folder, capsys):
    jsonl(folder / "records.txt", [{"text": "apple, pear"}] * 2)
    (folder / "other").write_text("apple pear\n")
    out, _ = run(capsys, "predict", "model.safetensors", "records.txt", "--format", "jsonl")
    assert [json.loads(line)["predicted"][0] for line in out.splitlines()] == ["fruit"] * 2


@pytest.mark.parametrize("validation", ["0.2", "test.jsonl"])
def test_a_training_is_measured_after_each_epoch(validation, folder, capsys):
    run(capsys, "train", "train.jsonl", "--validation", validation, "--early-stopping", 2,
        "--epochs", 20, "--log", "log.json", *OPTIONS)
    history = json.loads((folder / "log.json").read_text())
    assert len(history) < 20 and all(0 <= row["p_at_1"] <= 1 for row in history)
    assert "is a device or" not in refused(capsys, "train", "train.jsonl", "--validation", "none")


# -- predictions -----------------------------------------------------------------------------------


def test_a_training_is_resumed_with_the_same_bits(folder, capsys):
    options = ["train.jsonl", "--effort", "high", "--quiet"]
    run(capsys, "train", *options, "--checkpoint", "run", "--epochs", 2, "--hidden", 128)
    run(capsys, "train", *options, "--resume", "run", "--model", "again")
    two = sl.Tagger(epochs=2, effort="high", random_state=0).fit(
        *zip(*((row["text"], row["tags"]) for row in records(600)), strict=True))
    texts = [row["text"] for row in records(60, seed=1)]
    np.testing.assert_array_equal(sl.load("again").predict_proba(texts), two.predict_proba(texts))
    run(capsys, "train", *options, "--resume", "run", "--model", "longer", "--epochs", 3)
    run(capsys, "train", *options, "--resume", "run", "--model", "again")
    np.testing.assert_array_equal(sl.load("again").predict_proba(texts),
                                  sl.load("longer").predict_proba(texts))


def test_ctrl_c_says_how_to_continue(folder, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sl.Tagger, "fit", interrupted)
    _, err = run(capsys, "train", "train.jsonl", "--checkpoint", "run", "--quiet", code=130)
    assert "continue with --resume run" in err


# how an option shows in the tagger; the others are refused for texts
SHOWN = {"--hidden": ("3", "hidden", 3), "--batch-size": ("70", "batch_size", 70),
         "--lr": ("0.5", "lr", 0.5), "--dropout": ("0.25", "dropout", 0.25),
         "--effort": ("low", "effort", "low"), "--seed": ("7", "random_state", 7)}
OTHERS = {"--shards": "2", "--activation": "relu", "--loss": "bce", "--density": "0.5",
          "--init": "random", "--shared-ids": "yes", "--window": "9", "--optimizer": "sgd",
          "--schedule": "cosine", "--momentum": "0.5", "--weight-decay": "0.5",
          "--clip-norm": "3", "--second-moment": "row", "--state-dtype": "bfloat16",
          "--dtype": "bfloat16", "--active": "sample", "--candidates": "9", "--policy": "top",
          "--n-probes": "2", "--plan": "exact", "--family": "DWTA", "--rebuild": "Every(5)",
          "--recall": "0.9"}


def given_options():
    """The options that a resumed training does not take."""
    from sparselsh.cli import _arguments

    parser = _arguments.parser()
    sub, = (a.choices["train"] for a in parser._actions if hasattr(a, "choices") and a.choices)
    return sorted(a.option_strings[-1] for a in sub._actions
                  if isinstance(a, _arguments._Given))


@pytest.mark.parametrize("option", given_options())
def test_an_option_of_the_training_is_used_for_texts_or_refused(option, folder, capsys,
                                                                monkeypatch):
    if option not in SHOWN:
        assert f"{option}: is for rows of features" in refused(
            capsys, "train", "train.jsonl", option, OTHERS[option])
        return
    made = []
    monkeypatch.setattr(sl.Tagger, "fit", lambda self, *_, **__: made.append(self) or 1 / 0)
    value, name, shown = SHOWN[option]
    assert "division" in refused(capsys, "train", "train.jsonl", option, value)
    assert getattr(made[0], name) == shown


def test_jsonl_goes_in_and_out_and_keeps_what_identifies_a_record(folder, capsys):
    out, _ = run(capsys, "predict", "model.safetensors", "test.jsonl", "-k", 2)
    found = [json.loads(line) for line in out.splitlines()]
    given = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [row["id"] for row in given]
    tagger = sl.load("model.safetensors")
    for row, wanted in zip(found, tagger.predict_topk([one["text"] for one in given], k=2),
                           strict=True):
        assert "text" not in row and row["predicted"] == [name for name, _ in wanted]
        np.testing.assert_allclose(row["probability"], [p for _, p in wanted], atol=1e-6)
    right = np.mean([row["predicted"][0] in row["tags"] for row in found])
    assert right > 0.95


def test_lines_of_text_get_names_with_probabilities(folder, capsys):
    (folder / "new.txt").write_text("apple plum\nbus __label__fruit tram\n\n")
    out, _ = run(capsys, "predict", "model.safetensors", "new.txt", "-k", 1)
    lines = out.splitlines()
    assert len(lines) == 3
    name, p = lines[1].rsplit(":", 1)
    assert name == "public traffic" and 0 < float(p) <= 1
    out, _ = run(capsys, "predict", "model.safetensors", "new.txt", "-k", 3, "--no-scores")
    names = out.splitlines()[0].split("\t")
    assert names[0] == "fruit" and sorted(names) == sorted(TOPICS)
    out, _ = run(capsys, "predict", "model.safetensors", "new.txt", "--output-format", "jsonl",
                 "--no-scores", "-k", 1)
    assert json.loads(out.splitlines()[0]) == {"predicted": ["fruit"]}


def test_a_threshold_names_as_many_as_reach_it(folder, capsys):
    tagger = sl.load("model.safetensors")
    given = [json.loads(line)["text"] for line in (folder / "test.jsonl").read_text().splitlines()]
    out, _ = run(capsys, "predict", "model.safetensors", "test.jsonl", "--threshold", "auto")
    found = [json.loads(line)["predicted"] for line in out.splitlines()]
    assert found == tagger.predict(given)
    out, _ = run(capsys, "predict", "model.safetensors", "test.jsonl", "--threshold", 0.9)
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(p >= 0.9 for row in rows for p in row["probability"])


def test_other_files_get_lines(folder, capsys):
    (folder / "t.csv").write_text("text\napple\nbus\n")
    out, _ = run(capsys, "predict", "model.safetensors", "t.csv", "-k", 1, "--no-scores")
    assert out == "fruit\npublic traffic\n"


def test_stdin_is_answered_as_a_file_is(folder, capsys, monkeypatch):
    text = (folder / "test.jsonl").read_bytes()
    whole, _ = run(capsys, "predict", "model.safetensors", "test.jsonl")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text))))
    assert run(capsys, "predict", "model.safetensors")[0] == whole
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b'{"x"\n'))))
    assert "'<stdin>', line 1: is no JSON" in refused(capsys, "predict", "model.safetensors", "-")


def test_each_line_is_answered_at_once(folder):
    command = [sys.executable, "-P", "-m", "sparselsh", "predict", "model.safetensors", "-k", "1",
               "--no-scores"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for text, wanted in ((b"apple\n", b"fruit\n"), (b"violin\n", b"music\n")):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline() == wanted
        process.stdin.close()
    assert process.returncode == 0


def test_texts_and_rows_are_told_apart_when_answering(folder, capsys):
    (folder / "rows.txt").write_text("30 3 3\n" + "0 0:1\n1 1:1\n2 2:1\n" * 10)
    run(capsys, "train", "rows.txt", "--model", "rows.safetensors", *OPTIONS)
    assert "'test.jsonl': holds texts" in refused(capsys, "predict", "rows.safetensors",
                                                  "test.jsonl")
    assert "--exact: is for rows" in refused(capsys, "predict", "model.safetensors", "test.jsonl",
                                             "--exact")
    assert "is not recognized as JSONL" in refused(capsys, "evaluate", "model.safetensors",
                                                   "rows.txt")
    assert "--output-format" in refused(capsys, "predict", "rows.safetensors", "rows.txt",
                                        "--output-format", "jsonl")


def test_info_describes_a_tagger(folder, capsys):
    out, _ = run(capsys, "info", "model.safetensors", "--json", "info.json")
    report = json.loads((folder / "info.json").read_text())
    assert report["kind"] == "tagger of texts" and "fruit" in report["tags"] and "tags" in out
