"""The command line in its own process: files, exit code and error output."""
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import sparselsh as sl
from sparselsh import _files
from sparselsh.cli import _commands
from sparselsh.cli import _files as cli_files

pytest.importorskip("safetensors")

N_FEATURES, N_LABELS = 40, 20
TRAIN_KEYS = {"p_at_1", "p_at_3", "p_at_5", "train_seconds", "train_cpu_seconds",
              "microseconds_per_query",
              "computed_share", "refined"}
EVALUATE_KEYS = {f"{name}_at_{k}" for name in ("p", "ndcg", "psp") for k in (1, 3, 5)}


def sparselsh(*args, cwd, **options):
    """Run the command line in its own process."""
    command = [sys.executable, "-P", "-m", "sparselsh", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **options)


def write_rows(path, n, seed, n_features=N_FEATURES):
    """Write rows in which label j comes with the features 2j and 2j + 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(N_LABELS, size=n)
    rows = [f"{j} {2 * j}:1 {2 * j + 1}:{rng.uniform(0.5, 1):.3f}\n" for j in labels]
    path.write_text(f"{n} {n_features} {N_LABELS}\n" + "".join(rows))
    return labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with train.txt, test.txt, a model trained on them and its report."""
    folder = tmp_path_factory.mktemp("cli")
    write_rows(folder / "train.txt", 2000, seed=0)
    write_rows(folder / "test.txt", 100, seed=1)
    done = sparselsh("train", "train.txt", "--test", "test.txt", "--model", "model.safetensors",
                     "--hidden", 16, "--epochs", 20, "--lr", 0.01, "--batch-size", 64,
                     "--json", "report.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "summary").write_text(done.stdout)
    return folder


def assert_one_line_error(done, *named):
    assert done.returncode == 2, done.stderr
    assert (done.stderr.count("\n") == 1
            and done.stderr.startswith("sparselsh: error: ")), done.stderr
    for text in named:
        assert text in done.stderr


# --- valid calls ----------------------------------------------------------------------------------


def test_training_learns_and_reports(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() - {"peak_rss_bytes"} == TRAIN_KEYS
    assert report["p_at_1"] > 0.9
    assert 0 < report["computed_share"] <= 1
    assert report["microseconds_per_query"] > 0
    assert report.get("peak_rss_bytes", 2**24) >= 2**24  # more than 16 MiB, so not kilobytes
    summary = (folder / "summary").read_text()
    for text in ("2,000 rows", "P@1", "CPU s", "microseconds", "neurons computed"):
        assert text in summary


def test_only_requested_files_are_written(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "report.json"}
    assert not [name for name in names if "part" in name]


@pytest.mark.parametrize("options", [[], ["--exact"]])
def test_predictions_have_one_line_per_row(folder, options):
    done = sparselsh("predict", "model.safetensors", "test.txt", "-k", 3, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    truths = [line.split()[0] for line in (folder / "test.txt").read_text().splitlines()[1:]]
    assert len(lines) == len(truths)
    for line in lines:
        pairs = [re.fullmatch(r"(\d+):(-?\d.*)", word).groups() for word in line.split()]
        assert len(pairs) <= 3
        scores = [float(score) for _, score in pairs]
        assert scores == sorted(scores, reverse=True)
    first = [line.split(":")[0] for line in lines]
    assert np.mean([a == b for a, b in zip(first, truths, strict=True)]) > 0.9


def test_predictions_go_to_a_file_and_without_scores(folder, tmp_path):
    out = tmp_path / "out.txt"
    done = sparselsh("predict", "model.safetensors", "test.txt", "--no-scores",
                     "--output", out, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert re.fullmatch(r"((\d+( \d+)*)?\n){100}", out.read_text())
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_saved_network_evaluates_as_it_did_after_training(folder, tmp_path):
    report = tmp_path / "report.json"
    done = sparselsh("evaluate", "model.safetensors", "test.txt", "--train",
                     "train.txt", "--json", report, cwd=folder)
    assert done.returncode == 0, done.stderr
    figures, before = (json.loads(report.read_text()),
                       json.loads((folder / "report.json").read_text()))
    assert figures.keys() >= EVALUATE_KEYS | {"microseconds_per_query", "computed_share"}
    assert figures["p_at_1"] == pytest.approx(before["p_at_1"], abs=0.03)
    for text in ("P@5", "nDCG@5", "PSP@5"):
        assert text in done.stdout


def test_without_training_rows_there_is_no_psp(folder):
    done = sparselsh("evaluate", "model.safetensors", "test.txt", "--exact", cwd=folder)
    assert done.returncode == 0 and "nDCG@1" in done.stdout and "PSP" not in done.stdout


def test_converted_files_are_accepted_in_place_of_text(folder, tmp_path):
    for name in ("train", "test"):
        done = sparselsh("convert", folder / f"{name}.txt", f"{name}.csr", cwd=tmp_path)
        assert done.returncode == 0 and "rows, 40 features" in done.stdout, done.stderr
    options = ["--hidden", 16, "--epochs", 2, "--batch-size", 64, "--quiet", "--json"]
    for end, window in (("txt", []), ("csr", []), ("csr", ["--window", 100])):
        done = sparselsh("train", f"train.{end}", "--test", f"test.{end}",
                         *options, f"{end}.json", *window, cwd=tmp_path if end == "csr" else folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        if end == "txt":
            (folder / "txt.json").rename(tmp_path / "txt.json")
        elif not window:
            # a window that holds all rows gives the same network
            txt, csr = (
                json.loads((tmp_path / f"{end}.json").read_text()) for end in ("txt", "csr"))
            assert all(txt[key] == csr[key] for key in ("p_at_1", "p_at_5", "computed_share"))
    for end, where in (("txt", folder), ("csr", tmp_path)):
        done = sparselsh("predict", folder / "model.safetensors",
                         where / f"test.{end}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (tmp_path / f"{end}.out").write_text(done.stdout)
    assert (tmp_path / "txt.out").read_text() == (tmp_path / "csr.out").read_text()


def test_a_damaged_converted_file_is_reported_in_one_line(folder, tmp_path):
    assert sparselsh("convert", folder / "train.txt", "train.csr", cwd=tmp_path).returncode == 0
    whole = (tmp_path / "train.csr").read_bytes()
    (tmp_path / "train.csr").write_bytes(whole[:-100])
    assert_one_line_error(sparselsh("train", "train.csr", cwd=tmp_path),
                          "train.csr", "cut or damaged")
    (tmp_path / "train.csr").write_bytes(whole)
    write_rows(tmp_path / "test.txt", 10, seed=0, n_features=50)
    assert_one_line_error(sparselsh("train", "train.csr", "--test", "test.txt", cwd=tmp_path),
                          "test.txt", "50 f")
    assert_one_line_error(sparselsh("train", "test.txt", "--test", "train.csr", cwd=tmp_path),
                          "train.csr", "40 f")


def test_svmlight_rows_without_counts_are_predicted(folder, tmp_path):
    (tmp_path / "rows.txt").write_text("0 0:1 1:1\n3 6:1 7:1\n")
    model = folder / "model.safetensors"
    done = sparselsh("predict", model, "rows.txt", "-k", 1, "--no-scores", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "3"])


def test_quiet_training_prints_nothing(folder):
    done = sparselsh("train", "train.txt", "--epochs", 1, "--quiet", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_network_with_few_labels_is_evaluated(tmp_path):
    (tmp_path / "rows.txt").write_text("4 2 2\n" + "0 0:1\n1 1:1\n" * 2)
    done = sparselsh("train", "rows.txt", "--test", "rows.txt", "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0 and "P@5" in done.stdout, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes the streams")
def test_closed_streams_are_empty(folder):
    # Python has None there, of which a command that had done its work reported an AttributeError
    command = f"{shlex.quote(sys.executable)} -P -m sparselsh "

    def run(arguments):
        return subprocess.run(["sh", "-c", command + arguments], cwd=folder, capture_output=True,
                              text=True, check=False)

    done = run("predict model.safetensors test.txt >&-")
    assert done.returncode == 2
    assert done.stderr == "sparselsh: error: standard output is closed; give --output\n"
    done = run("predict model.safetensors test.txt --output closed.txt >&- <&- 2>&-")
    assert done.returncode == 0 and (folder / "closed.txt").read_text().count("\n") > 10
    done = run("predict model.safetensors <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("info model.safetensors >&- 2>&-").returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe raises another error on Windows")
def test_a_closed_pipe_is_not_an_error(folder, tmp_path):
    write_rows(tmp_path / "many.txt", 20_000, seed=2)
    command = [sys.executable, "-P", "-m", "sparselsh", "predict",
               folder / "model.safetensors", "many.txt"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("to_file", [False, True])
def test_a_full_disk_is_reported_in_one_line(folder, to_file):
    command = [sys.executable, "-P", "-m", "sparselsh", "predict", "model.safetensors", "test.txt"]
    command += ["--output", "/dev/full"] if to_file else []
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_one_line_error(done, "No space left")


def test_version_and_help(tmp_path):
    assert re.fullmatch(r"sparselsh \d+\.\d+.*\n", sparselsh("--version", cwd=tmp_path).stdout)
    for command in ([], ["train"], ["predict"], ["evaluate"], ["demo"]):
        done = sparselsh(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith("usage: sparselsh")


def test_an_interrupt_is_reported_in_one_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(_commands.COMMANDS, "demo", interrupted)
    assert _commands.main(["demo"]) == 130
    assert capsys.readouterr().err == "sparselsh: interrupted\n"


RUN = ["--hidden", "16", "--epochs", "3", "--lr", "0.01", "--batch-size", "64", "--quiet"]


@pytest.fixture(scope="module")
def checkpoint_of_interrupted(folder):
    """The checkpoint run.safetensors of a training that Ctrl-C ended in its second epoch."""
    from sparselsh import callbacks

    def pressed(checkpoint, network):  # replaces on_step: simulates Ctrl-C
        if network._training.n_steps == 40:  # 32 steps per epoch
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_step", pressed)
        run = folder / "run.safetensors"
        assert (_commands.main(["train", str(folder / "train.txt"), "--checkpoint", str(run), *RUN])
                == 130)
    return run


@pytest.mark.parametrize("to", ["the same checkpoint", "another", "a converted file"])
def test_an_interrupted_training_is_resumed_with_the_same_bits(
        folder, checkpoint_of_interrupted, tmp_path, to):
    run = tmp_path / "run.safetensors"
    run.write_bytes(checkpoint_of_interrupted.read_bytes())
    whole = sparselsh("train", "train.txt", "--model", tmp_path / "whole.safetensors",
                      *RUN, cwd=folder)
    assert whole.returncode == 0, whole.stderr
    train = folder / "train.txt"
    if to == "a converted file":
        train = tmp_path / "train.csr"
        assert sparselsh("convert", folder / "train.txt", train, cwd=tmp_path).returncode == 0
    other = ["--checkpoint", "other.safetensors"] if to == "another" else []
    done = sparselsh("train", train, "--resume", run, "--model", "model.safetensors",
                     "--test", folder / "test.txt", *other, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 epochs are done" in done.stdout and "P@1" in done.stdout
    (a, config), (b, expected) = (_files.read(tmp_path / f"{name}.safetensors", "sparselsh.network")
                                  for name in ("model", "whole"))
    assert config == expected and set(a) == set(b)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    last = tmp_path / "other.safetensors" if to == "another" else run
    again = sparselsh("train", train, "--resume", last, cwd=tmp_path)
    assert again.returncode == 0 and "3 epochs are done: the training is complete" in again.stdout


def test_an_interrupted_training_prints_how_to_resume(folder, tmp_path, monkeypatch, capsys):
    from sparselsh import callbacks

    def pressed(checkpoint, network):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Checkpoint, "on_step", pressed)
    run = tmp_path / "run.safetensors"
    assert (_commands.main(["train", str(folder / "train.txt"), "--checkpoint", str(run), *RUN])
            == 130)
    assert run.exists()
    assert capsys.readouterr().err == f"sparselsh: interrupted; continue with --resume {run}\n"


@pytest.mark.parametrize("args, named", [
    (["--hidden", 16], ["--hidden: a resumed training keeps"]),
    (["--seed", 0], ["--seed: a resumed training keeps"]),
    (["--model", "run.safetensors"], ["'run.safetensors': is also given as"]),
    (["--resume", "model.safetensors"],
     ["model.safetensors", "no training to continue", "--checkpoint"]),
    (["--resume", "none.safetensors"], ["none.safetensors: no such file"]),
])
def test_arguments_that_conflict_with_resume_are_reported_in_one_line(
        folder, checkpoint_of_interrupted, args, named):
    done = sparselsh("train", "train.txt", "--resume", "run.safetensors", *args, cwd=folder)
    assert_one_line_error(done, *named)


def test_resume_refuses_other_rows_than_those_of_the_training(
        folder, checkpoint_of_interrupted, tmp_path):
    before = checkpoint_of_interrupted.read_bytes()
    write_rows(tmp_path / "fewer.txt", 1999, seed=0)
    write_rows(tmp_path / "wider.txt", 2000, seed=0, n_features=N_FEATURES + 1)
    done = sparselsh("train", tmp_path / "fewer.txt", "--resume",
                     checkpoint_of_interrupted, cwd=folder)
    assert_one_line_error(done,
                          "X must have the 2000 rows of the training that is resumed, got 1999")
    done = sparselsh("train", tmp_path / "wider.txt", "--resume",
                     checkpoint_of_interrupted, cwd=folder)
    assert_one_line_error(done, "wider.txt", "41 features", "run.safetensors", "has 40")
    assert checkpoint_of_interrupted.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path):
    place = tmp_path / "out.json"
    place.write_text("old")
    with pytest.raises(RuntimeError), cli_files.writing(place) as file:
        file.write("half")
        raise RuntimeError
    assert place.read_text() == "old" and os.listdir(tmp_path) == ["out.json"]


# --- errors ---------------------------------------------------------------------------------------

ROW = "3 1:0.5\n"

BAD_FILES = {  # name: (content, what the message names)
    "empty": (b"", "empty"),
    "no rows": (b"0 40 20\n", "line 1"),
    "cut": (b"3 40 20\n" + 2 * ROW.encode(), "line"),
    "too many rows": (b"1 40 20\n" + 2 * ROW.encode(), "line"),
    "binary": (bytes(range(256)) * 20, "line 1"),
    "feature too large": (b"2 40 20\n3 1:0.5\n3 40:0.5\n", "line 3"),
    "feature negative": (b"1 40 20\n3 -1:0.5\n", "line 2"),
    "label too large": (b"1 40 20\n20 1:0.5\n", "line 2"),
    "NaN": (b"1 40 20\n3 1:nan\n", "line 2"),
    "infinite": (b"1 40 20\n3 1:inf\n", "line 2"),
    "not a number": (b"1 40 20\n3 1:one\n", "line 2"),
    "negative header": (b"1 -40 20\n3 1:0.5\n", "line 1"),
    "no labels": (b"2 40 20\n 1:0.5\n 2:0.5\n", "label"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_training_file_is_named_and_nothing_is_written(tmp_path, name):
    content, named = BAD_FILES[name]
    (tmp_path / "rows.txt").write_bytes(content)
    done = sparselsh("train", "rows.txt", "--model", "out.safetensors",
                     "--json", "out.json", cwd=tmp_path)
    assert_one_line_error(done, "rows.txt", named)
    assert os.listdir(tmp_path) == ["rows.txt"]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("name", ["cut", "feature too large"])
def test_a_bad_file_to_predict_is_named_and_nothing_is_written(folder, tmp_path, name, command):
    content, named = BAD_FILES[name]
    (tmp_path / "rows.txt").write_bytes(content)
    output = "--output" if command == "predict" else "--json"
    done = sparselsh(command, folder / "model.safetensors", "rows.txt", output, "out", cwd=tmp_path)
    assert_one_line_error(done, "rows.txt", named)
    assert done.stdout == "" and os.listdir(tmp_path) == ["rows.txt"]


@pytest.mark.parametrize("command", [("predict",), ("evaluate",), ("train", "train.txt", "--test")])
def test_a_wrong_number_of_features_is_refused(folder, tmp_path, command):
    write_rows(tmp_path / "wide.txt", 5, seed=0, n_features=N_FEATURES + 1)
    first, *rest = command
    args = rest or [folder / "model.safetensors"]
    done = sparselsh(first, *args, tmp_path / "wide.txt", cwd=folder)
    assert_one_line_error(done, "wide.txt", "line 1", "41 features", "has 40")


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x10\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_file_that_is_not_a_model_is_refused(folder, tmp_path, command, content):
    if content is not None:
        (tmp_path / "model").write_bytes(content)
    done = sparselsh(command, tmp_path / "model", "test.txt", cwd=folder)
    assert_one_line_error(done, str(tmp_path / "model"))


def test_a_truncated_model_is_refused(folder, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    done = sparselsh("predict", tmp_path / "model.safetensors", "test.txt", cwd=folder)
    assert_one_line_error(done, "model.safetensors")


def test_tensors_of_another_program_are_refused_as_a_model(folder, tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros((3, 2), np.float32)}, tmp_path / "other.safetensors")
    done = sparselsh("predict", tmp_path / "other.safetensors", "test.txt", cwd=folder)
    assert_one_line_error(done, "other.safetensors")


@pytest.mark.parametrize("args, named", [
    (["train", "missing.txt"], ["missing.txt", "path"]),
    (["train", "."], ["directory"]),
    (["train", "train.txt", "--test", "missing.txt"], ["missing.txt"]),
    (["predict", "missing.safetensors", "test.txt"], ["missing.safetensors"]),
    (["predict", "model.safetensors", "test.txt", "-k", "21"], ["-k 21", "20 labels"]),
    (["predict", "model.safetensors", "test.txt", "-k", "0"], ["-k", "'0'"]),
    (["train", "train.txt", "--model", "missing/model.safetensors"], ["missing", "folder"]),
    (["train", "train.txt", "--model", "train.txt/model.safetensors"], ["train.txt", "folder"]),
    (["train", "train.txt", "--json", "missing/report.json"], ["missing", "folder"]),
    (["train", "train.txt", "--model", "."], ["folder"]),
    (["train", "train.txt", "--model", "train.txt"], ["train.txt", "another name"]),
    (["predict", "model.safetensors", "test.txt", "--output", "test.txt"],
     ["test.txt", "another name"]),
    (["convert", "missing.txt", "out.csr"], ["missing.txt", "path"]),
    (["convert", "train.txt", "missing/out.csr"], ["missing", "folder"]),
    (["convert", "train.txt", "train.txt"], ["train.txt", "another name"]),
    (["convert", "model.safetensors", "out.csr"], ["model.safetensors", "line 1", "header"]),
    (["convert", "train.txt"], ["OUT.csr"]),
    (["train", "train.txt", "--window", "0"], ["--window"]),
    (["demo", "--json", "missing/report.json"], ["missing", "folder"]),
    (["demo", "--rows", "10"], ["--rows", "1000"]),
    (["train", "train.txt", "--hidden", "0"], ["--hidden"]),
    (["train", "train.txt", "--epochs", "-1"], ["--epochs"]),
    (["train", "train.txt", "--batch-size", "many"], ["--batch-size"]),
    (["train", "train.txt", "--density", "1.5"], ["--density", "auto"]),
    (["train", "train.txt", "--density", "nan"], ["--density"]),
    (["train", "train.txt", "--lr", "inf"], ["--lr"]),
    (["train", "train.txt", "--loss", "hinge"], ["--loss", "softmax"]),
    (["train", "train.txt", "--activation", "tanh"], ["--activation", "relu"]),
    (["train", "train.txt", "--threads", "0"], ["--threads"]),
    (["train", "train.txt", "--seed", "x"], ["--seed"]),
    (["train"], ["TRAIN", "--help"]),
    (["learn"], ["learn"]),
    ([], ["COMMAND"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_bad_arguments_are_reported_in_one_line(folder, args, named):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert_one_line_error(sparselsh(*args, cwd=folder), *named)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_training_that_diverges_ends_with_an_error_and_writes_no_model(folder, tmp_path):
    # it ended with code 0, and with a model that could not be loaded
    done = sparselsh("train", folder / "train.txt", "--lr", "1e38", "--quiet", "--model",
                     tmp_path / "model", cwd=tmp_path)
    assert_one_line_error(done, "learning rate", "lr=1e+38", "ten times smaller")
    assert os.listdir(tmp_path) == []


# --- the recipe for many labels -------------------------------------------------------------------


def test_weights_from_labels_and_refinement_can_be_requested(folder, tmp_path):
    done = sparselsh("train", folder / "train.txt", "--test", folder / "test.txt",
                     "--model", tmp_path / "model",
                     "--hidden", 16, "--epochs", 2, "--init", "labels", "--refine", "yes",
                     "--json", tmp_path / "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report").read_text())
    assert report["refined"] and report["p_at_1"] > 0.9
    done = sparselsh("evaluate", tmp_path / "model", folder / "test.txt",
                     "--json", tmp_path / "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "again").read_text())["p_at_1"] == report["p_at_1"]


def test_the_effort_sets_the_number_of_epochs(folder, tmp_path):
    for effort, epochs in (("low", 1), ("high", 4)):
        log = tmp_path / f"{effort}.csv"
        done = sparselsh("train", folder / "train.txt", "--log", log, "--hidden", 8,
                         "--init", "labels", "--effort", effort, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(log.read_text().splitlines()) == 1 + epochs


def test_the_effort_sets_the_number_of_hidden_neurons(folder, tmp_path):
    for options, n_hidden in (([], 256), (["--effort", "high"], 512),
                              (["--effort", "high", "--hidden", 8], 8)):
        done = sparselsh("train", folder / "train.txt", "--model", tmp_path / "model",
                         "--epochs", 1, "--refine", "no", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sl.load(tmp_path / "model").layers[0].n_out == n_hidden


def test_dropout_is_that_of_the_recipe_or_the_one_requested(folder, tmp_path):
    def dropout(*options):
        done = sparselsh("train", folder / "train.txt", "--model", tmp_path / "model",
                         "--hidden", 8, "--epochs", 1,
                         "--refine", "no", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return sl.load(tmp_path / "model").layers[0].dropout

    assert dropout("--init", "labels") == 0  # few steps
    assert dropout("--init", "labels", "--batch-size", 1, "--epochs", 20) == 0.2
    assert dropout("--init", "labels", "--batch-size", 1, "--epochs", 20, "--dropout", 0) == 0
    assert dropout("--dropout", 0.4) == 0.4
    assert dropout() == 0


def test_shared_ids_are_refused_where_labels_and_features_differ_in_number(folder, tmp_path):
    done = sparselsh("train", folder / "train.txt", "--init", "labels",
                     "--shared-ids", "yes", cwd=tmp_path)
    assert done.returncode == 2
    assert "shared_ids=True needs as many labels as features" in done.stderr


def test_with_few_labels_training_starts_from_random_weights(folder):
    assert json.loads((folder / "report.json").read_text())["refined"] is False
