"""The demo: nothing leaks from test to training, nor from the answer to its features."""
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from sparselsh.cli import _demo

STDLIB = Path(sysconfig.get_paths()["stdlib"])

pytestmark = pytest.mark.skipif(not (STDLIB / "asyncio" / "tasks.py").exists(),
                                reason="this Python lacks the source of its standard library")


@pytest.fixture(scope="module")
def task():
    """A task from one package of the standard library, built in a fraction of a second."""
    return _demo.stdlib_task(seed=0, max_rows=4000, max_test_rows=500, root=STDLIB / "asyncio")


def test_shapes_and_types_are_as_documented(task):
    n, n_test = task.X_train.shape[0], task.X_test.shape[0]
    assert (task.X_train.shape == (n, len(task.features))
            and task.X_test.shape == (n_test, len(task.features)))
    assert (task.Y_train.shape == (n, len(task.labels))
            and task.Y_test.shape == (n_test, len(task.labels)))
    assert 2000 < n <= 4000 and 0 < n_test <= 500
    for M in (task.X_train, task.X_test, task.Y_train, task.Y_test):
        assert isinstance(M, csr_array) and M.dtype == np.float32 and M.has_canonical_format
    for Y in (task.Y_train, task.Y_test):
        assert np.all(np.diff(Y.indptr) == 1) and np.all(Y.data == 1)
    assert 0 < task.covered <= 1


def test_rows_have_length_one(task):
    for X in (task.X_train, task.X_test):
        length = np.sqrt(X.multiply(X).sum(axis=1))
        np.testing.assert_allclose(length[np.diff(X.indptr) > 0], 1, rtol=1e-5)


def test_every_class_has_rows_to_learn_from(task):
    assert np.diff(task.Y_train.tocsc().indptr).min() >= 1
    assert task.X_train.shape[0] >= 2 * len(task.labels)
    assert len(set(task.labels)) == len(task.labels)
    assert all(label.isidentifier() for label in task.labels) and "self" in task.labels
    assert not {"def", "return", "None"} & set(task.labels)


def test_no_file_is_in_both_parts(task):
    test_files = set(task.test_places[:, 0].tolist())
    assert test_files and not test_files & set(task.train_files.tolist())
    assert len(task.train_files) < len(task.files) == len(set(task.files))


def test_the_same_seed_gives_the_same_task(task):
    again = _demo.stdlib_task(seed=0, max_rows=4000, max_test_rows=500, root=STDLIB / "asyncio")
    assert (again.labels, again.features, again.files) == (task.labels, task.features, task.files)
    for a, b in zip(again[:4], task[:4], strict=True):
        assert (a != b).nnz == 0
    other = _demo.stdlib_task(seed=1, max_rows=4000, max_test_rows=500, root=STDLIB / "asyncio")
    assert other.train_files.tolist() != task.train_files.tolist()


def test_features_are_the_tokens_around_the_answer_and_not_the_answer_itself(tmp_path):
    """Renaming only the answer leaves the features of its row unchanged."""
    learnt = "one = two(three)\none = two(three)\none = other(three)\none = other(three)\n"
    rows = {"two": [], "other": []}
    for name in rows:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(9):
            (folder / f"a{number}.py").write_text(learnt)
            (folder / f"b{number}.py").write_text(f"one = {name}(three)\n")
        task = _demo.stdlib_task(max_rows=1000, root=folder)
        wanted = [row for row in range(task.X_test.shape[0])
                  if _demo.blanked(task, row)[1] == "one = ____(three)"
                  and task.files[task.test_places[row, 0]].name.startswith("b")]
        for row in wanted:
            assert task.labels[task.Y_test.indices[row]] == name
            start, end = task.X_test.indptr[row], task.X_test.indptr[row + 1]
            rows[name].append({task.features[j] for j in task.X_test.indices[start:end]})
    expected = {"-2 one", "-1 =", "+1 (", "+2 three", "+3 )", "~ one", "~ three"}
    for name in rows:
        assert rows[name] and all(row == expected for row in rows[name])


def test_comments_and_strings_are_not_identifiers(tmp_path):
    text = ('# commented commented\ncode = "quoted \\" quoted"  # commented\n'
            "code = f'''quoted\nquoted 'quoted' ''' + rb\"quoted\"\n"
            'code = "# quoted"; later = "unclosed\nlater = 1.5e3\n')
    for number in range(12):
        (tmp_path / f"{number}.py").write_text(text)
    task = _demo.stdlib_task(max_rows=1000, root=tmp_path)
    assert set(task.labels) == {"code", "later", "unclosed"}
    assert "+2 <str>" in task.features


def test_the_line_shown_is_the_source_of_the_row(task):
    for row in range(0, task.X_test.shape[0], 25):
        place, line = _demo.blanked(task, row)
        name, number = re.fullmatch(r"(.+\.py):(\d+)", place).groups()
        truth = task.labels[task.Y_test.indices[row]]
        source = (STDLIB / "asyncio"
                  / name).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert source.strip() == line.replace("____", truth)


def test_more_rows_give_more_classes():
    sizes = [_demo.stdlib_task(max_rows=rows, root=STDLIB / "email").Y_train.shape
             for rows in (1000, 4000)]
    assert sizes[0][0] <= 1000 and sizes[1][0] <= 4000
    assert sizes[0][1] < sizes[1][1]


def test_a_folder_without_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        _demo.stdlib_task(root=tmp_path)


def test_the_whole_demo_runs(tmp_path):
    command = [sys.executable, "-P", "-m", "sparselsh", "demo", "--rows", "2000", "--epochs", "1",
               "--json", "report.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    for figures in (report, report["dense"]):
        assert figures.keys() >= {"p_at_1", "p_at_3", "p_at_5", "train_seconds",
                                  "train_cpu_seconds",
                                  "microseconds_per_query", "computed_share"}
    assert report["baseline"].keys() >= {"p_at_1", "p_at_3", "p_at_5"}
    assert report["task"]["classes"] > 300 and report["task"]["rows"] <= 2000
    for text in ("identifiers to choose from", "most frequent", "dense / hashed", "____"):
        assert text in done.stdout
