"""Longer trainings, validation, smaller files, descriptions, pipes and completion."""
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh.cli import _commands, _stream
from sparselsh.cli._arguments import parser

pytest.importorskip("safetensors")

N_FEATURES, N_LABELS = 60, 25
OPTIONS = ["--hidden", "16", "--lr", "0.01", "--batch-size", "64", "--quiet"]


def rows(n, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(N_LABELS, size=n)
    indices = (2 * y[:, None] + np.arange(2)).ravel()
    X = sp.csr_array((rng.uniform(0.5, 1, 2 * n).astype(np.float32), indices,
                      np.arange(0, 2 * n + 1, 2)), shape=(n, N_FEATURES))
    return X, y


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with train.txt, test.txt, and a model and a checkpoint of three epochs."""
    folder = tmp_path_factory.mktemp("models")
    for name, n, seed in (("train", 1500, 0), ("test", 60, 1)):
        X, y = rows(n, seed)
        Y = sp.csr_array((np.ones(n), (np.arange(n), y)), shape=(n, N_LABELS))
        sl.datasets.write_xmc(folder / f"{name}.txt", X, Y)
    assert _commands.main(
        ["train", str(folder / "train.txt"), "--model", str(folder / "model.safetensors"),
         "--checkpoint", str(folder / "run.safetensors"), "--epochs", "3", *OPTIONS]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    for path in trained.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *args, code=0):
    """Run the command in this process; (stdout, stderr)."""
    capsys.readouterr()
    found = _commands.main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


# -- longer trainings ------------------------------------------------------------------------------


def test_a_complete_training_is_made_longer(folder, capsys):
    out, _ = run(capsys, "train", "train.txt", "--resume", "run.safetensors", "--epochs", 5)
    assert "3 epochs are done\n" in out
    net = sl.load("run.safetensors")
    assert len(net.history) == 5 and net.training_progress.is_done


def test_a_longer_training_is_refused_where_more_epochs_are_done(folder, capsys):
    _, err = run(capsys, "train", "train.txt", "--resume", "run.safetensors", "--epochs", 2, code=2)
    assert "epochs must be at least 3, the epochs that have begun, got 2" in err
    _, err = run(capsys, "train", "train.txt", "--resume", "run.safetensors", "--lr", 1, code=2)
    assert "--lr: a resumed training keeps" in err
    _, err = run(capsys, "train", "train.txt", "--resume", "run.safetensors", "--no-shuffle",
                 code=2)
    assert "--no-shuffle: a resumed training keeps" in err


def test_resume_with_more_epochs_is_a_training_of_that_many():
    X, y = rows(300, 0)

    def new():
        return sl.Network([sl.Linear(N_FEATURES, 8), sl.LSHLinear(8, N_LABELS)], random_state=0)

    options = {"batch_size": 32, "verbose": False}
    whole = new().fit(X, y, epochs=4, optimizer=sl.SGD(0.1), **options)
    longer = new().fit(X, y, epochs=2, optimizer=sl.SGD(0.1), **options)
    longer.resume(X, y, epochs=4, verbose=False)
    # without a schedule the plan does not matter
    for a, b in zip(whole.get_weights(), longer.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert longer.resume(X, y, epochs=4, verbose=False) is longer
    assert [entry["loss"] for entry in whole.history] == [entry["loss"] for entry in longer.history]


# -- validation and options ------------------------------------------------------------------------


def test_validation_by_a_fraction_stops_a_training_that_has_learnt_all(folder, capsys):
    run(capsys, "train", "train.txt", "--validation", 0.2, "--early-stopping", 2, "--epochs", 60,
        "--log", "log.csv", "--checkpoint", "v.safetensors", "--refine", "no", *OPTIONS)
    history = sl.load("v.safetensors").history
    assert 3 <= len(history) < 60
    assert all("p_at_1" in entry for entry in history)
    lines = (folder / "log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,loss") and len(lines) == len(history) + 1


def test_validation_by_a_file(folder, capsys):
    run(capsys, "train", "train.txt", "--validation", "test.txt", "--checkpoint", "v.safetensors",
        "--epochs", 1, *OPTIONS)
    assert "p_at_1" in sl.load("v.safetensors").history[0]


@pytest.mark.parametrize("options, words", [
    (["--early-stopping"], "--early-stopping: needs --validation"),
    (["--validation", 0.9], "--validation 0.9: is neither a file nor a fraction"),
    (["--validation", 0.1, "--hold-out", 10], "--hold-out: the rows of --validation"),
    (["--validation", "none.txt"], "none.txt"),
    (["--log", "log.txt", "--epochs", 1], "--log: path must end in .csv or .json"),
    (["--family", "Nothing(3)"], "--family Nothing: is none of DWTA, CrossPolytope"),
    (["--family", "SimHash(bits=99)"], "--family SimHash: bits must be"),
    (["--family", "SimHash(__import__('os'))"], "neither a name nor a call with plain"),
    (["--rebuild", "Never"], "--rebuild Never: is none of AtOnce"),
    (["--schedule", "steep"], "--schedule steep: is none of Cosine"),
    (["--optimizer", "sgd"], "--optimizer sgd: needs --lr"),
    (["--optimizer", "sgd", "--lr", 1, "--second-moment", "row"], "--second-moment: is for"),
    (["--momentum", 0.5], "--momentum: is for --optimizer sgd"),
    (["--weight-decay", -1], "'-1' is not a number of at least 0"),
])
def test_options_that_do_not_fit_are_refused_in_one_line(folder, capsys, options, words):
    try:
        _, err = run(capsys, "train", "train.txt", *options, code=2)
    except SystemExit as error:
        assert error.code == 2
        err = capsys.readouterr().err
    assert err.startswith("sparselsh: error: ") and err.count("\n") == 1 and words in err


def test_options_reach_the_network_and_its_optimizer(folder, capsys):
    run(capsys, "train", "train.txt", "--checkpoint", "o.safetensors", "--epochs", 1, "--init",
        "random", "--lr", 0.05, "--optimizer", "sgd", "--momentum", 0.5, "--weight-decay", 0.01,
        "--schedule", "WarmUp(0.2, then='cosine')", "--clip-norm", 3, "--state-dtype", "bfloat16",
        "--dtype", "bfloat16", "--active", "sample", "--policy", "vanilla", "--density", 0.5,
        "--family", "DWTA(bins=3, tables=9)", "--rebuild", "Every(7)", "--plan", "rows",
        "--n-probes", 2, "--recall", 0.9, "--no-shuffle", "--hidden", 16, "--quiet")
    net = sl.load("o.safetensors")
    last, optimizer = net.layers[-1], net.optimizer
    assert (last.active, last.policy, last.plan, last.n_probes) == ("sample", "vanilla", "rows", 2)
    assert (last.dtype, last.recall, last.family.tables) == ("bfloat16", 0.9, 9)
    assert last.rebuild == sl.rebuild.Every(7)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (0.5, 0.01, 3)
    assert "WarmUp" in optimizer.missing_schedule and optimizer.state_dtype == "bfloat16"
    assert not net.training_progress.shuffle


def test_second_moment_is_an_option_of_adam(folder, capsys):
    run(capsys, "train", "train.txt", "--checkpoint", "o.safetensors", "--epochs", 1,
        "--second-moment", "row", "--init", "random", *OPTIONS)
    assert sl.load("o.safetensors").optimizer.second_moment == "row"


def test_names_of_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["train", "t.txt", "--epo", "3"])
    assert "unrecognized arguments: --epo" in capsys.readouterr().err


def test_a_log_gets_one_line_per_epoch_and_no_carriage_returns(folder):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sparselsh", "train", "train.txt", "--epochs", "2",
         "--hidden", "16", "--refine", "yes"], capture_output=True, timeout=120)
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert b"\r" not in done.stderr
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2", "refine"]
    assert "1,500 samples, loss " in lines[0] and lines[0].endswith(" s")


# -- ids that begin at 1 ---------------------------------------------------------------------------


def test_rows_without_a_header_are_read_as_they_are_or_with_a_note(folder, capsys):
    text = (folder / "test.txt").read_text().splitlines(keepends=True)
    chosen = [line for line in text[1:] if " 0:" not in line]
    (folder / "rows.txt").write_text("".join(chosen))
    (folder / "whole.txt").write_text(f"{len(chosen)} {N_FEATURES} {N_LABELS}\n" + "".join(chosen))
    options = ["-k", 1, "--no-scores"]
    wanted, _ = run(capsys, "predict", "model.safetensors", "whole.txt", *options)
    guessed, note = run(capsys, "predict", "model.safetensors", "rows.txt", *options)
    assert guessed != wanted and note.startswith("sparselsh: note: 'rows.txt' has no header")
    assert run(capsys, "predict", "model.safetensors", "rows.txt", "--zero-based", *options) == (
        wanted, "")
    assert run(capsys, "predict", "model.safetensors", "rows.txt", "--one-based", *options) == (
        guessed, "")


def test_rows_numbered_from_1_are_noted_when_they_are_learnt(folder, capsys):
    text = (folder / "test.txt").read_text().splitlines(keepends=True)
    (folder / "rows.txt").write_text("".join(line for line in text[1:] if " 0:" not in line))
    for rows in (["rows.txt"], ["train.txt", "--test", "rows.txt"]):
        _, err = run(capsys, "train", *rows, "--hidden", 4, "--epochs", 1, "--quiet",
                     "--model", "m.safetensors")
        assert err.count("note: 'rows.txt' has no header and no feature 0") == 1


def test_files_with_other_numbers_are_refused_by_what_differs(folder, capsys):
    header, _, rows = (folder / "test.txt").read_text().partition("\n")
    n, _, _ = header.split()
    options = ["--hidden", 4, "--epochs", 1, "--quiet"]
    for counts, words in (((N_FEATURES + 1, N_LABELS), f"{N_FEATURES + 1} features, but 'train.txt'"
                           f" has {N_FEATURES}"),
                          ((N_FEATURES, N_LABELS + 1), f"{N_LABELS + 1} labels, but 'train.txt' has"
                           f" {N_LABELS}")):
        (folder / "other.txt").write_text(f"{n} {counts[0]} {counts[1]}\n{rows}")
        assert f"'other.txt', line 1: {words}" in run(
            capsys, "train", "train.txt", "--test", "other.txt", *options, code=2)[1]
    for name, text in (("broken", "1 2:x\n"), ("later", "1 2:1\n1 99999:1\n")):
        (folder / f"{name}.txt").write_text(text)
        assert f"'{name}.txt', line {text.count(chr(10))}" in run(
            capsys, "train", "train.txt", "--test", f"{name}.txt", *options, code=2)[1]


def test_text_whose_ids_begin_at_1_is_read_with_and_without_a_header(tmp_path):
    (tmp_path / "a.txt").write_text("1 1:1 3:2\n")
    (tmp_path / "b.txt").write_text("1 3 2\n1 1:1 3:2\n")
    for name, first, wanted in (("a", "auto", [1, 0, 2]), ("a", 0, [0, 1, 0, 2]),
                                ("a", 1, [1, 0, 2]), ("b", 1, [1, 0, 2])):
        X, _ = sl.datasets.read_xmc(tmp_path / f"{name}.txt", first_feature=first)
        assert X.toarray().tolist() == [wanted]
    (tmp_path / "c.txt").write_text("1 0:1 3:2\n")
    with pytest.raises(sl.datasets.FileFormatError, match=r"feature 0 occurs .*first_feature=0"):
        sl.datasets.read_xmc(tmp_path / "c.txt", first_feature=1)
    with pytest.raises(ValueError, match="first_feature=2 is unknown"):
        sl.datasets.read_xmc(tmp_path / "c.txt", first_feature=2)


# -- pipes -----------------------------------------------------------------------------------------


def test_lines_of_a_pipe_are_answered_as_those_of_a_file(folder, capsys, monkeypatch):
    whole, _ = run(capsys, "predict", "model.safetensors", "test.txt", "-k", 2)
    text = (folder / "test.txt").read_bytes()
    for piped in (text, text.partition(b"\n")[2], text.rstrip(b"\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(piped))))
        assert run(capsys, "predict", "model.safetensors", "-k", 2)[0] == whole


def test_each_line_is_answered_before_the_next_one_comes(folder):
    lines = (folder / "test.txt").read_bytes().splitlines(keepends=True)[1:4]
    command = [sys.executable, "-P", "-m", "sparselsh", "predict", "model.safetensors", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for line in lines:
            process.stdin.write(line)
            process.stdin.flush()
            assert len(process.stdout.readline().split()) == 5
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_wrong_line_of_a_pipe_is_named(folder, capsys, monkeypatch):
    piped = b"0 1:1\n0 1:1\n0 1:x\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(piped))))
    _, err = run(capsys, "predict", "model.safetensors", "-", code=2)
    assert err.startswith("sparselsh: error: '<stdin>', line 3: ") and err.count("\n") == 1


def test_lines_are_whole_whatever_the_parts_in_which_they_come(monkeypatch):
    monkeypatch.setattr(_stream, "READ_BYTES", 3)
    text = b"a\nbcdef\n\ngh\nend"
    found = list(_stream.lines_of(io.BufferedReader(io.BytesIO(text), 3)))
    assert b"".join(part for _, part in found) == text
    for line, part in found:
        before = b"".join(p for n, p in found if n < line)
        assert before.count(b"\n") == line - 1 and (part.endswith(b"\n") or part == b"end")
    monkeypatch.setattr(_stream, "MAX_LINE_BYTES", 10)
    with pytest.raises(ValueError, match=r"line 2: longer than 10 bytes"):
        list(_stream.lines_of(io.BufferedReader(io.BytesIO(b"a\n" + b"x" * 20), 3)))


# -- info and compress -----------------------------------------------------------------------------


def test_info_describes_a_network_and_a_checkpoint(folder, capsys):
    out, _ = run(capsys, "info", "model.safetensors", "--json", "info.json")
    report = json.loads((folder / "info.json").read_text())
    assert report["bytes"] == os.path.getsize("model.safetensors")
    assert (report["features"], report["labels"], report["layers"]) == (60, 25, "60 -> 16 -> 25")
    assert report["probabilities"] is True and "25" in out and "network" in out
    run(capsys, "info", "run.safetensors", "--json", "run.json")
    report = json.loads((folder / "run.json").read_text())
    assert report["training"] == "3 of 3 epochs, complete" and "Adam" in report["optimizer"]


def test_info_refuses_what_is_no_model(folder, capsys):
    sl.LSHIndex().fit(np.eye(9, 4)).save("index.safetensors")
    assert "an index" in run(capsys, "info", "index.safetensors", code=2)[1]
    assert "train.txt" in run(capsys, "info", "train.txt", code=2)[1]
    assert "no such file" in run(capsys, "info", "none", code=2)[1]


@pytest.mark.parametrize("storage, most", [("bfloat16", 0.75), ("int8", 0.7)])
def test_a_compressed_file_is_smaller_and_answers_alike(folder, capsys, storage, most):
    out, _ = run(capsys, "compress", "model.safetensors", "-o", "small.safetensors",
                 "--storage", storage)
    assert storage in out
    assert "compressed" in run(capsys, "info", "small.safetensors")[0]
    options = ["test.txt", "-k", 1, "--no-scores"]
    a, b = (run(capsys, "predict", f"{name}.safetensors", *options)[0].split()
            for name in ("model", "small"))
    assert np.mean(np.array(a) == np.array(b)) > 0.95
    for option in (["--probabilities"], ["--threshold", 0.2]):
        a, b = ([line.split() for line in
                 run(capsys, "predict", f"{name}.safetensors", "test.txt", "-k", 1, *option)[0]
                 .splitlines()] for name in ("model", "small"))
        p, q = ([float(entry.split(":")[1]) for line in lines for entry in line]
                for lines in (a, b))
        assert len(a) == len(b) and abs(np.mean(p) - np.mean(q)) < 0.02
    assert "P@1" in run(capsys, "evaluate", "small.safetensors", "test.txt")[0]
    _, err = run(capsys, "compress", "small.safetensors", "-o", "x.safetensors", code=2)
    assert "is compressed or converted already" in err


def test_compress_measures_on_rows(folder, capsys):
    out, _ = run(capsys, "compress", "model.safetensors", "-o", "small.safetensors",
                 "--calibration", "train.txt")
    assert "agreement" in out or "same best" in out or "recall" in out


# -- completion ------------------------------------------------------------------------------------

SHELLS = {"bash": ["-n"], "zsh": ["-n"], "fish": ["--no-execute"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_has_every_command_and_option(shell, capsys, tmp_path):
    out, _ = run(capsys, "completion", shell)
    for name, sub in parser().commands().items():
        assert name in out
        for action in sub.arguments():
            for option in action.option_strings:
                shown = option if shell != "fish" else option.lstrip("-")
                assert shown in out, (name, option)
    path = shutil.which(shell)
    if path is not None:
        (tmp_path / "script").write_text(out)
        subprocess.run([path, *SHELLS[shell], tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("words, wanted", [
    (["pre"], {"predict"}), (["train", "--val"], {"--validation"}),
    (["train", "--loss", "b"], {"bce"}), (["completion", "f"], {"fish"})])
def test_bash_completes(words, wanted, capsys):
    out, _ = run(capsys, "completion", "bash")
    line = " ".join(f'"{word}"' for word in ["sparselsh", *words])
    done = subprocess.run(
        ["bash", "-c", f'{out}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _sparselsh; '
         'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted
