"""A wide classification task from the data of every Python: identifiers of its standard library.

The task is to guess an identifier from the code around it.

Design
------
a. *Rows.* Each identifier in the source text is a row; the classes are the identifiers themselves.
   Keywords do not count, nor do words inside comments or strings: a string is one token ``<str>``,
   a comment is dropped.
b. *Split.* By file: no test row shares a file with a training row. An identifier that does not
   occur in the training files cannot be guessed; such test rows are left out, and `Task.covered`
   is the fraction that remains.
c. *Thinning.* One identifier in seven is ``self``. A class that occurs n times keeps about
   s * sqrt(n) rows, in training and test alike, with s chosen by the requested number of rows.
d. *Features.* The tokens at the distances -3 .. 3 with their distance, and the identifiers within
   30 tokens without it, at a lower weight; each scaled by its rarity. ``python
   bench/demo_features.py`` compares this with its parts, as P@1 of a dense NumPy network (99,954
   rows, 22,812 classes, 2 epochs; CPython 3.11.7): 20.3 %. Only tokens with distances 11.5 %, only
   identifiers without 8.5 %, within 60 tokens 20.0 %, both at one weight 19.2 %, without rarity
   18.1 %.
e. *Cost.* The dense network takes about 6 * rows * epochs * hidden * classes operations: 3.5e12 for
   100,000 rows, 23,000 classes, 128 hidden neurons and 2 epochs.
"""
from __future__ import annotations

import keyword
import os
import platform
import re
import sysconfig
from collections import namedtuple
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .._arrays.types import Ids, PathLike

T = TypeVar("T")

N_HIDDEN = 128
BATCH_SIZE = 256
LEARNING_RATE = 2e-2
SCHEDULE = "linear"
MAX_TEST_ROWS = 5_000
N_SHOWN_GUESSES = 8
N_FREQUENT_LABELS = 5  # guesses of the baseline, which is the same for every row

NEAR_DISTANCES = (-3, -2, -1, 1, 2, 3)  # tokens
AROUND_DISTANCE = 30  # tokens
AROUND_WEIGHT = 0.4
MIN_ROWS_PER_CLASS = 4  # on average; with fewer there are too many classes for the rows
TEST_FRACTION = 0.1  # of the files
N_BISECTIONS = 40  # of the thinning factor

# Strings come first, so that their content is not read as code; they leave the group empty. No two
# parts of a repeat match the same text: an unclosed quote makes the search go back once over what
# follows. (Possessive repeats would not go back, but Python 3.11.2 gets them wrong.)
_TOKEN = re.compile(
    r'''[rRbBuUfFtT]{0,2}(?:
            """[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""
          | \'\'\'[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*\'\'\'
          | "[^"\\\n]*(?:\\.[^"\\\n]*)*"  |  '[^'\\\n]*(?:\\.[^'\\\n]*)*'
        )
      | ( \#[^\n]*  |  [^\W\d]\w*  |  \d[\w.]*  |  \n\s*
        | ->|:=|\*\*|//|[-+*/%@&|^<>=!]=        |  [^\w\s] )
    ''', re.DOTALL | re.VERBOSE)

Task = namedtuple("Task", "X_train Y_train X_test Y_test features labels files train_files "
                          "test_places covered")
Task.__doc__ = """Training and test rows.

X_train, X_test : csr_array of float32, rows of norm 1
Y_train, Y_test : csr_array of float32, one 1 per row: the identifier
features : list of str, ``"-1 ."`` for a dot just before, ``"~ name"`` for a name nearby
labels : list of str, the identifiers
files : list of Path, in the order of `test_places`
train_files : array of int, indices in `files` of the training files
test_places : array of int (n, 2), per test row the index of its file in `files` and of its token
    there
covered : float, the fraction of the identifiers of the test files that are classes
"""


def stdlib_task(seed: int = 0, max_rows: int = 100_000, max_test_rows: int = MAX_TEST_ROWS,
                root: PathLike | None = None) -> Task:
    """Build the task from the standard library of the running Python.

    Parameters
    ----------
    seed : int
        Determines which files are test files and which rows are kept.
    max_rows, max_test_rows : int
        Maximum numbers of rows. Fewer training rows also mean fewer classes: there are at least
        four rows per class on average.
    root : path, optional
        Another folder of Python files.

    Returns
    -------
    Task

    Raises
    ------
    ValueError
        If there are too few Python files, or too little text in them.
    """
    files = _python_files(root or sysconfig.get_paths()["stdlib"])
    rng = np.random.default_rng(seed)
    tokens, file_of, start_of, words = _read_tokens(files)
    is_test_file = np.zeros(len(files), bool)
    n_test_files = max(1, round(TEST_FRACTION * len(files)))
    is_test_file[rng.permutation(len(files))[:n_test_files]] = True

    is_name = np.array([word.isidentifier() and not keyword.iskeyword(word) for word in words])
    places = np.flatnonzero(is_name[tokens])
    in_test = is_test_file[file_of[places]]
    train, test = places[~in_test], places[in_test]

    count = np.bincount(tokens[train], minlength=len(words))
    min_count = 2
    while MIN_ROWS_PER_CLASS * np.count_nonzero(count >= min_count) > max_rows:
        min_count += 1
    classes = np.flatnonzero(count >= min_count)
    if len(classes) < 2:
        raise ValueError(f"{root or 'the standard library'}: too little Python text for {max_rows} "
                         "rows; ask for more rows, or run a Python that has the source of its "
                         "standard library")
    class_of = np.full(len(words), -1, np.int32)
    class_of[classes] = np.arange(len(classes))

    kept = _thinned(count[classes], max_rows)
    train = _sample(rng, train, class_of[tokens[train]], kept)
    known = test[class_of[tokens[test]] >= 0]
    chance = (kept / count[classes])[class_of[tokens[known]]]
    thinned = known[rng.random(len(known)) < chance]
    chosen = np.sort(rng.permutation(thinned)[:max_test_rows])

    columns, test_columns = (_columns(tokens, rows, is_name) for rows in (train, chosen))
    entries = np.bincount(columns[columns >= 0])
    used = np.flatnonzero(entries > 1)
    rarity = _rarity(entries[used])
    names = [f"{distance:+d} " for distance in NEAR_DISTANCES] + ["~ "]
    return Task(
        X_train=_features(columns, used, rarity),
        Y_train=_indicator(class_of[tokens[train]], len(classes)),
        X_test=_features(test_columns, used, rarity),
        Y_test=_indicator(class_of[tokens[chosen]], len(classes)),
        features=[names[i // len(words)] + words[i % len(words)] for i in used.tolist()],
        labels=[words[i] for i in classes.tolist()],
        files=files, train_files=np.flatnonzero(~is_test_file),
        test_places=np.column_stack([file_of[chosen], chosen - start_of[file_of[chosen]]]),
        covered=len(known) / max(1, len(test)),
    )


def run_demo(rows: int = 100_000, epochs: int = 2, dense: bool = True, seed: int = 0,
             n_threads: int | None = None, verbose: bool = True,
             say: Callable[[str], object] = print) -> dict[str, Any]:
    """Train with and without hashing on the same rows, print both, and return the figures."""
    import sparselsh as sl

    from . import _measure

    task = stdlib_task(seed, rows)
    n, n_classes = task.Y_train.shape
    say(f"Python {platform.python_version()}, the text of its standard library: "
        f"{len(task.files):,} files\n"
        f"Guess an identifier from the code around it: {n_classes:,} identifiers to choose from\n"
        f"{n:,} training rows, {task.X_test.shape[0]:,} test rows from other files; "
        f"{task.X_train.shape[1]:,} features\n"
        f"({task.covered:.0%} of the identifiers in the test files are among them; the rest is "
        "left out)\n")

    def trained(density: float | Literal["auto"], name: str) -> tuple[dict[str, Any], Ids]:
        say(f"Training {name}:")
        net = sl.Network([sl.Linear(task.X_train.shape[1], N_HIDDEN),
                          sl.LSHLinear(N_HIDDEN, n_classes, density=density)],
                         loss="softmax", random_state=seed, n_threads=n_threads)
        wall, cpu = _measure.seconds(
            net.fit, task.X_train, task.Y_train, epochs=epochs, batch_size=BATCH_SIZE,
            optimizer=sl.Adam(lr=LEARNING_RATE, schedule=SCHEDULE), verbose=verbose)
        report, ids = _measure.quality(net, task.X_test, task.Y_test)
        return report | {"train_seconds": wall, "train_cpu_seconds": cpu}, ids

    report, ids = trained("auto", "with hashing")
    report["peak_rss_bytes"] = _measure.peak_rss()  # before the dense network adds to it
    if dense:
        report["dense"] = trained(1.0, "the same network without, to compare")[0]
        report["cpu_ratio"] = report["dense"]["train_cpu_seconds"] / report["train_cpu_seconds"]

    by_frequency = np.argsort(-task.Y_train.sum(axis=0), kind="stable")
    frequent = by_frequency[:N_FREQUENT_LABELS].astype(np.int32)
    guesses = np.tile(frequent, (task.X_test.shape[0], 1))
    report["baseline"] = _measure.precision(task.Y_test, guesses)
    report["task"] = {
        "python": platform.python_version(), "rows": n, "test_rows": task.X_test.shape[0],
        "features": task.X_train.shape[1], "classes": n_classes, "epochs": epochs,
        "covered": task.covered,
    }

    say(_table(report))
    say(f"\nIts guesses on {N_SHOWN_GUESSES} test rows, drawn at random:")
    for row in np.random.default_rng(seed).permutation(task.X_test.shape[0])[:N_SHOWN_GUESSES]:
        say(_guess(task, row, ids[row]))
    return report


def blanked(task: Task, row: int) -> tuple[str, str]:
    """``("json/decoder.py:31", line)`` of a test row, with ``____`` in place of the identifier."""
    file, number = task.test_places[row].tolist()
    text = _text(task.files[file])
    match = next(islice(_code(_TOKEN.finditer(text), lambda match: match[1]), number, None))
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    line = text[start:match.start()] + "____" + text[match.end():end if end >= 0 else None]
    place = os.path.relpath(task.files[file], os.path.commonpath(task.files))
    return f"{place}:{text.count(chr(10), 0, start) + 1}", line.strip()


def _guess(task: Task, row: int, ids: Ids) -> str:
    place, line = blanked(task, row)
    truth = task.Y_test.indices[task.Y_test.indptr[row]]
    guesses = ", ".join(task.labels[j] for j in ids[:3] if j >= 0) or "none"
    place_of_truth = np.flatnonzero(ids == truth)
    verdict = (f"right, guess {place_of_truth[0] + 1}" if len(place_of_truth)
               else "not among the five")
    return (f"  {line[:96]}\n      {task.labels[truth]}: {verdict}; guesses: {guesses}   "
            f"({place})")


def _table(report: dict[str, Any]) -> str:
    """Format the figures as lines of text; a row has one true label, so "top 5" is 5 times P@5."""
    names = "".join(f"{name:>7}" for name in ("P@1", "P@3", "P@5", "top 5"))
    lines = [f"{'':<14}{names}{'training':>14}{'query':>10}{'computed':>11}"]
    nets = {"hashed": report, "dense": report.get("dense"), "most frequent": report["baseline"]}
    for name, figures in nets.items():
        if figures is None:
            continue
        quality = [*(figures[f"p_at_{k}"] for k in (1, 3, 5)), 5 * figures["p_at_5"]]
        line = f"{name:<14}" + "".join(f"{value:>7.1%}" for value in quality)
        if "train_cpu_seconds" in figures:
            line += (f"{figures['train_cpu_seconds']:>8.1f} CPU s"
                     f"{figures['microseconds_per_query']:>7.0f} us"
                     f"{figures['computed_share']:>11.1%}")
        lines.append(line)

    lines.append("(top 5: the identifier is among the first five guesses; computed: fraction of "
                 "the output neurons, per query)")
    if "cpu_ratio" in report:
        lines.append(f"CPU seconds of training, dense / hashed: {report['cpu_ratio']:.2f}")
    return "\n".join(lines)


# --- from text to tokens --------------------------------------------------------------------------


def _python_files(root: PathLike) -> list[Path]:
    """Return the ``.py`` files below `root` in sorted order, without installed packages."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if len(found) < 2:
        raise ValueError(f"{root}: no Python source to learn from; run a Python that has the "
                         "source of its standard library")
    return found


def _text(file: Path) -> str:
    # a few files of the standard library's tests are in other encodings
    return file.read_text(encoding="utf-8", errors="replace")


def _code(matches: Iterable[T], group: Callable[[T], str]) -> Iterator[T]:
    """Yield the matches that are code: no comments, and only the first of consecutive line ends."""
    line_ended = True
    for match in matches:
        token = group(match)
        if token and token[0] == "#":
            continue
        ends = bool(token) and token[0] == "\n"
        if not (ends and line_ended):
            yield match
        line_ended = ends


def _read_tokens(files: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Read the text of all files as token ids.

    Returns
    -------
    tokens : array of int32, indices into `words`; 30 zeros before each file and after the last
    file_of : array of int32, the file of each token
    start_of : array of int, the position in `tokens` of the first token of each file
    words : list of str
    """
    numbers = {"": 0}
    parts, start_of, total = [], [], 0
    for file in files:
        code = _code(_TOKEN.findall(_text(file)), lambda token: token)
        part = [0] * AROUND_DISTANCE
        for token in code:
            word = "<newline>" if token[:1] == "\n" else token or "<str>"
            part.append(numbers.setdefault(word, len(numbers)))
        parts.append(np.array(part, np.int32))
        start_of.append(total + AROUND_DISTANCE)
        total += len(part)

    file_of = np.repeat(np.arange(len(files), dtype=np.int32), [len(part) for part in parts])
    parts.append(np.zeros(AROUND_DISTANCE, np.int32))
    file_of = np.concatenate([file_of, np.full(AROUND_DISTANCE, len(files) - 1, np.int32)])
    return np.concatenate(parts), file_of, np.array(start_of), list(numbers)


# --- from tokens to rows --------------------------------------------------------------------------


def _thinned(count: np.ndarray, max_rows: int) -> np.ndarray:
    """Rows that each class keeps: about s * sqrt(count), at least 1; at most `max_rows`."""
    low, high = 0.0, float(np.sqrt(count.max()))
    for _ in range(N_BISECTIONS):
        s = (low + high) / 2
        kept = np.clip(np.floor(s * np.sqrt(count)), 1, count)
        low, high = (s, high) if kept.sum() <= max_rows else (low, s)
    return np.clip(np.floor(low * np.sqrt(count)), 1, count).astype(np.int64)


def _sample(rng: np.random.Generator, places: np.ndarray, labels: np.ndarray,
            kept: np.ndarray) -> np.ndarray:
    """Draw ``kept[c]`` of the places of each class c; sorted."""
    order = rng.permutation(np.flatnonzero(labels >= 0))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, random within a class
    label = labels[order]
    rank = np.arange(len(label)) - np.searchsorted(label, label)
    return np.sort(places[order[rank < kept[label]]])


def _columns(tokens: np.ndarray, places: np.ndarray, is_name: np.ndarray) -> np.ndarray:
    """Columns (n, 66) of the entries per row, -1 for none; the token at the place is not read."""
    n_words = len(is_name)
    columns = []
    for i, distance in enumerate(NEAR_DISTANCES):
        token = tokens[places + distance]
        columns.append(np.where(token > 0, token + i * n_words, -1))
    for distance in range(-AROUND_DISTANCE, AROUND_DISTANCE + 1):
        if distance:
            token = tokens[places + distance]
            columns.append(np.where(is_name[token], token + len(NEAR_DISTANCES) * n_words, -1))
    return np.column_stack(columns)


def _features(columns: np.ndarray, used: np.ndarray, rarity: np.ndarray) -> csr_array:
    """Rows over the columns in `used`, scaled by their `rarity`, as float32 of norm 1."""
    number = np.full(max(columns.max(), used[-1]) + 2, -1, np.int32)  # column -1 reads the last
    number[used] = np.arange(len(used))
    column = number[columns]
    weight = np.full(columns.shape[1], AROUND_WEIGHT, np.float32)
    weight[: len(NEAR_DISTANCES)] = 1
    row, slot = np.nonzero(column >= 0)
    X = csr_array((weight[slot], (row, column[row, slot])), (len(columns), len(used)))
    X.sum_duplicates()
    X.data *= rarity.astype(np.float32)[X.indices]
    norm = np.sqrt(np.add.reduceat(np.append(X.data**2, 0), X.indptr[:-1]), dtype=np.float32)
    X.data /= np.repeat(norm, np.diff(X.indptr))
    return X


def _rarity(entries: np.ndarray) -> np.ndarray:
    """Weight of features by their number of entries: 1 for the most frequent."""
    return 1 + np.log(entries.max() / entries)


def _indicator(labels: np.ndarray, n_classes: int) -> csr_array:
    n = len(labels)
    return csr_array((np.ones(n, np.float32), labels, np.arange(n + 1)), shape=(n, n_classes))
