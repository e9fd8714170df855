"""Fuzz all file readers: a damaged file must yield a valid object or a clear error.

    python -P tests/fuzz.py                                # every reader
    python -P tests/fuzz.py xmc index --inputs 40000       # these readers, with more inputs
    python -P tests/fuzz.py index --begin 1234 --inputs 1  # repeat one input

Input number i of a reader has the same bytes in every run with the same --seed. It is made from a
valid file by flips, cuts, splices and numbers that are too large; for safetensors files also by
changes to arrays and to the configuration after which the file is still well-formed and has a
correct checksum.

These are findings: an error other than ValueError, or one whose message does not name the file; an
invalid result; the end of the process, be it by a report of a sanitizer; more memory or time than
the limits allow. Each reader runs in its own process.

POSIX only. tests/test_fuzz.py tries some inputs of each reader; .ci/sanitize runs this script under
the sanitizers.
"""
import argparse
import bz2
import copy
import gzip
import importlib.util
import itertools
import json
import lzma
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _files, rebuild
from sparselsh.cli import _records
from sparselsh.cli._files import UserError
from sparselsh.datasets import _csr_file, _xmc_text
from sparselsh.index import _file
from sparselsh.inference import FACTOR_FORMAT, TEXT_FORMAT, EstimatorNetwork, _conversion
from sparselsh.inference.readers import FittedClassifier
from sparselsh.inference.readers.affine import Affine

MEMORY_MB = 1024  # beyond what the process has before the first input
SECONDS = 20  # for one input
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files in memory, where there are
MAX_TAIL_BYTES = 1 << 20  # of what a process that died has written

# --- changes to bytes -----------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
           2**53, 2**63 - 1, 2**63, 2**64 - 1]
TOKENS = [b"", b"-1", b"0", b"2147483647", b"2147483648", b"9" * 19, b"9" * 40,
          b"1e400", b"nan", b"inf", b"-0", b"+7",
          b"1_0", b"1e-9999999999999999999", b"0x1", b" ", b"\n", b"\r\n",
          b",", b":", b"::", b"#", b"\0", b"\xff\xfe", b"\xef\xbb\xbf",
          b"qid:1", b"NULL", b"{", b"[" * 3000, b'"', b"\\ud800"]


def flip(rng, data, _):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng, data, _):
    del data[rng.randrange(len(data)):]


def drop(rng, data, _):
    begin = rng.randrange(len(data))
    del data[begin:begin + rng.choice((1, 2, 8, 64, 1024))]


def repeat(rng, data, _):
    begin = rng.randrange(len(data))
    some = data[begin:begin + rng.choice((1, 2, 8, 64, 1024))]
    data[begin:begin] = some * rng.choice((1, 2, 50))


def overwrite(rng, data, _):
    begin = rng.randrange(len(data))
    size = rng.choice((1, 4, 8, 16))
    data[begin:begin + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def insert(rng, data, _):
    begin = rng.randrange(len(data))
    data[begin:begin] = rng.choice(TOKENS)


def splice(rng, data, other):
    begin = rng.randrange(len(data))
    data[begin:] = other[rng.randrange(len(other)):]


def binary_number(rng, data, _):
    kind = rng.choice("IQ")
    begin = rng.randrange(max(1, len(data) // 8)) * 8 % max(1, len(data) - 8)
    number = rng.choice(NUMBERS) % 2**(8 * struct.calcsize(kind))
    data[begin:begin + struct.calcsize(kind)] = struct.pack("<" + kind, number)


def text_number(rng, data, _):
    begin = rng.randrange(len(data))
    if found := re.compile(rb"[-+.\deE]*\d").search(data, begin):
        data[found.start():found.end()] = rng.choice(
            (rng.choice(TOKENS), str(rng.choice(NUMBERS)).encode()))


CHANGES = [flip, flip, cut, drop, repeat, overwrite, insert, splice, binary_number,
           text_number, text_number]


def damaged(rng, seeds):
    """Return the bytes of one of the seeds with one to three changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(CHANGES)(rng, data, rng.choice(seeds))
    return bytes(data)


# --- changes to safetensors files that leave them well-formed -------------------------------------

DTYPES = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I32": np.int32,
          "I64": np.int64, "U8": np.uint8,
          "U16": np.uint16, "BOOL": np.bool_}
VALUES = [None, True, False, 0, 1, -1, 2, 3, 24, 64, 255, 1024, 2**31 - 1,
          2**31, 2**63, 10**400, 0.0, 0.5, -0.5, 1e308,
          float("nan"), float("inf"), "", "auto", "a", "top", "batch",
          "sample", "exact", "probes", "sketches",
          "SimHash", "DWTA", "MinHash", "CrossPolytope", [], {}, [[]], [1, 2], {"type": "SimHash"}]
SHAPES = [[], [0], [1], [0, 0], [2**62, 0], [2**40], [2**32, 2**32], [1, 1, 1], [-1], [2**64]]


def unpack(data):
    """Return ({name: (dtype name, shape, bytes)}, metadata) of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    metadata = header.pop("__metadata__")
    return {name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
            for name, entry in header.items()}, metadata


def pack(tensors, metadata):
    """Return the bytes of a safetensors file; the inverse of `unpack`."""
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(
        data for _, _, data in tensors.values())


def change_config(rng, tree):
    """Replace one value, drawn at random, in a tree of lists and dicts."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        if not (isinstance(tree[key], (dict, list)) and rng.random() < 0.8):
            break
        tree = tree[key]
    action = rng.randrange(8)
    if action == 0:
        del tree[key]
    elif action == 1 and isinstance(tree, dict):
        tree[rng.choice(("", "type", "n_in", "depth"))] = tree.pop(key)
    elif action == 2 and isinstance(tree, list):
        tree *= 2
    elif action == 3 and isinstance(tree[key], (int, float)) and tree[key] < 2**64:
        tree[key] += rng.choice((-1, 1, 0.5))
    else:
        tree[key] = copy.deepcopy(rng.choice(VALUES))  # a later change may reach into it


def change_tensor(rng, tensors):
    name = rng.choice(list(tensors))
    dtype, shape, data = tensors[name]
    try:
        array = np.frombuffer(data, DTYPES[dtype]).reshape(shape).copy()
    except (KeyError, ValueError):  # an earlier change already broke it
        return
    action = rng.randrange(8)
    if action == 0:
        del tensors[name]
        return
    if action == 1:
        tensors[name] = tensors[rng.choice(list(tensors))]
        return
    if action == 2:
        tensors[name] = (rng.choice([*DTYPES, "BF16", "F8_E4M3", "X"]), shape, data)
        return
    if action == 3:
        tensors[name] = (dtype, rng.choice(SHAPES), data)
        return
    if action == 4:
        dtype = rng.choice(list(DTYPES))
        with np.errstate(all="ignore"):
            array = array.astype(DTYPES[dtype])
    elif action == 5 and array.ndim:
        array = rng.choice(
            (array[:-1], array[:0], array[..., :-1], array.ravel(), np.concatenate([array, array])))
    elif array.size:
        values = ([np.nan, np.inf, -np.inf, 3e38, 1e-45]
                  if array.dtype.kind == "f" else [0, 1, -1, 127, 255, 2**31 - 1])
        with np.errstate(all="ignore"):
            array.ravel()[rng.randrange(array.size)] = (
                np.array(rng.choice(values)).astype(array.dtype))
    tensors[name] = (dtype, list(array.shape), array.tobytes())


def well_formed(rng, seeds):
    """Return a seed with changes to its configuration and arrays and a correct checksum."""
    tensors, metadata = unpack(rng.choice(seeds))
    config = json.loads(metadata["config"])
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            change_config(rng, config)
        elif tensors:
            change_tensor(rng, tensors)
    metadata["config"] = "[" * 100_000 if rng.random() < 0.002 else json.dumps(config)
    if "checksum" in metadata:
        try:
            arrays = {name: np.frombuffer(data, DTYPES[dtype]).reshape(shape)
                      for name, (dtype, shape, data) in tensors.items()}
        except (KeyError, ValueError):  # the file cannot be read: any checksum will do
            arrays = {}
        metadata["checksum"] = _files.checksum(arrays, metadata["config"])
    return pack(tensors, metadata)


# --- what every reader must guarantee -------------------------------------------------------------


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def expect_valid_csr(matrix):
    """Check that a kernel can trust the rows of a CSR matrix."""
    indptr, indices = matrix.indptr, matrix.indices
    expect(len(indptr) == matrix.shape[0] + 1 and indptr[0] == 0
           and indptr[-1] == len(indices) == len(matrix.data),
           "the offsets do not match the arrays")
    expect((np.diff(indptr) >= 0).all(), "offsets fall")
    expect(not len(indices) or (indices.min() >= 0 and indices.max() < matrix.shape[1]),
           "an id is out of range")
    rises = np.diff(indices) > 0
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    expect(rises.all(), "the ids of a row are not ascending")
    expect(np.isfinite(matrix.data).all(), "a value is not finite")


def expect_answers(ids, scores, n):
    expect(ids.min() >= -1 and ids.max() < n, "an id is out of range")
    expect(not np.isnan(scores).any(), "a score is NaN")


def outcome(call):
    """Return the result of a call, or None where it refuses the file."""
    try:
        return call()
    except ValueError:
        return None


def diverging(train):
    """Train, with weights of any size: a loss that is not finite is reported as such."""
    try:
        train()
    except FloatingPointError as error:
        expect("learning rate" in str(error), f"the message names no remedy: {error}")


class Text:
    """XMC and svmlight text: whole reads and reads in chunks give the same result."""

    def __init__(self, suffix=".txt", pack=bytes):
        self.suffix, self.pack = suffix, pack

    def seeds(self, folder):
        rng = np.random.default_rng(0)
        X = sp.random_array((40, 60), density=0.1, format="csr", dtype=np.float32, rng=rng)
        Y = sp.random_array((40, 30), density=0.05, format="csr", dtype=np.float32, rng=rng)
        texts = [b"3 4 2\n0,1 0:1.5 3:-2e-3\n 1:0.25\n\n", b"0 1:1 2:2 # a comment\n\n1,2 3:.5\n",
                 b"0 5 5\n", b"1:1\n"]
        for name in ("xmc", "svmlight"):
            if name == "svmlight":
                X.data[:] = np.round(X.data, 3)
                Y = sp.csr_array(
                    np.eye(40, 30, dtype=np.float32) + np.eye(40, 30, -30, dtype=np.float32))
            path = Path(folder) / "sound.txt"
            sl.datasets.write_xmc(path, X, Y, format=name)
            texts.append(path.read_bytes())
        return [self.pack(text) for text in texts]

    make = staticmethod(damaged)

    def read(self, path):
        if os.path.getsize(path) % 2:  # both would take twice as long
            for part in sl.datasets.read_xmc(path):
                expect_valid_csr(part)
            return
        known = outcome(lambda: sl.datasets.read_xmc(path, format="xmc"))
        in_chunks = outcome(lambda: list(_xmc_text.chunks(path, 3)))
        expect((known is None) == (in_chunks is None),
               "of a whole read and a read in chunks, one refuses the file")
        if known is not None:
            for whole, parts in zip(known, zip(*in_chunks, strict=True), strict=True):
                expect((abs(whole - sp.vstack(parts)).nnz == 0),
                       "a read in chunks gives other values than a whole read")
        for part in sl.datasets.read_xmc(path) if known is None else known:
            expect_valid_csr(part)


class Records:
    """Texts with labels: JSONL, CSV, Parquet and fastText's lines, as the command reads them."""

    def __init__(self, kind, suffix, pack=bytes):
        self.kind, self.suffix, self.pack = kind, suffix, pack

    def seeds(self, folder):
        rows = [{"id": i, "text": f"word{i} \u00e4 \u2028 \"quoted\", {i * 7}", "more": None,
                 "tags": [f"tag{j}" for j in range(i % 4)]} for i in range(40)]
        if self.kind == "parquet":
            import pyarrow
            from pyarrow import parquet

            path = Path(folder) / "sound.parquet"
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return [path.read_bytes()]
        if self.kind == "csv":
            lines = ["id,text,tags"]
            for row in rows:
                lines.append(f'{row["id"]},"a ""b""\n{row["id"]}","{"|".join(row["tags"])}"')
        elif self.kind == "fasttext":
            lines = [" ".join(f"__label__{name}" for name in row["tags"]) + " " + "a b c" * 3
                     for row in rows]
        else:
            lines = [json.dumps(row) for row in rows]
            lines.append('{"text": "a", "tags": "b"}')
        return [self.pack("\n".join(lines).encode()), self.pack((lines[-1] + "\n" * 3).encode())
                if self.kind == "jsonl" else self.pack("\n".join(lines[:3]).encode())]

    make = staticmethod(damaged)

    def read(self, path):
        columns = _records.Columns(["text"], "tags", "|" if self.kind == "csv" else None)
        try:
            found = _records.read_records(path, self.kind, columns)
        except UserError as error:  # one line for the user of the command
            raise ValueError(str(error)) from error
        expect(len(found.texts) == len(found.labels) > 0, "there are as many labels as texts")
        expect(all(isinstance(text, str) for text in found.texts), "a text is no string")
        kinds = {type(label) for label in found.labels}
        expect(kinds in ({str}, {list}), "labels are strings, or lists of them")
        if kinds == {list}:
            expect(all(isinstance(name, str) for label in found.labels for name in label),
                   "a label is no string")


class Rows:
    """CSR files."""

    suffix = ".csr"

    def seeds(self, folder):
        path, rng = Path(folder) / "sound.csr", np.random.default_rng(0)
        files = []
        for n_rows, n_features, n_labels in ((30, 20, 10), (1, 1, 1), (0, 3, 2), (200, 7, 4)):
            X = sp.random_array((n_rows, n_features), density=0.2, format="csr",
                                dtype=np.float32, rng=rng)
            Y = sp.random_array((n_rows, n_labels), density=0.2, format="csr",
                                dtype=np.float32, rng=rng)
            sl.datasets.write_csr(path, X, Y)
            files += [path.read_bytes(), self.of_version_1(path.read_bytes())]
        return files

    @staticmethod
    def of_version_1(whole):
        """Return the file without checksums of its arrays, so that damage reaches the checks."""
        n_rows, _, _, x_nnz, y_nnz = struct.unpack("<5Q", whole[24:64])
        end = _csr_file._sections(n_rows, x_nnz, y_nnz)["y_indices"].end
        return (_csr_file._HEADER_START.pack(_csr_file.MAGIC, 1,
                                             _csr_file._header_checksum(1, whole[24:64]))
                + whole[24:end])

    def make(self, rng, seeds):
        """Return a damaged file, in half of the cases with a correct checksum of the header."""
        data = bytearray(damaged(rng, seeds))
        front, counts = _csr_file._HEADER_START.size, _csr_file._HEADER_COUNTS.size
        if rng.random() < 0.5 and len(data) >= front + counts:
            if rng.random() < 0.5:
                begin = front + 8 * rng.randrange(5)
                number = rng.choice(
                    (rng.choice(NUMBERS), int.from_bytes(data[begin:begin + 8], "little") + 1))
                data[begin:begin + 8] = struct.pack("<Q", number % 2**64)
            version = 1 + (data[16] != 1)
            data[:front] = _csr_file._HEADER_START.pack(
                _csr_file.MAGIC, version,
                _csr_file._header_checksum(version, bytes(data[front:front + counts])))
        return bytes(data)

    def read(self, path):
        with sl.datasets.open_csr(path) as file:
            for part in file[:]:
                expect_valid_csr(part)
            n = sum(X.shape[0] for X, _ in file.chunks(3))
            expect(n == len(file), "the chunks do not have the file's number of rows")
            if n:
                for part in file[[0, -1]]:
                    expect_valid_csr(part)


def deep_networks():
    """Yield (network, X, Y): hashed hidden layers, rebuild policies, weights in bfloat16."""
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((48, 10), dtype=np.float32), np.arange(48) % 12
    hidden = {"density": 0.5, "active": "sample", "activation": "relu"}
    for layers in (
        [sl.Linear(10, 12, activation="relu", dropout=0.2),
         sl.LSHLinear(12, 24, policy="sketches", sketch_bits=64,
                      rebuild=rebuild.OnDrift(0.1, check_every=2), **hidden),
         sl.LSHLinear(24, 12, density=0.5, family=sl.SimHash(2, 3), rebuild=rebuild.Frozen(1))],
        [sl.LSHLinear(10, 16, policy="sketches", sketch_bits=64, oversample=3,
                      dtype="bfloat16", **hidden),
         sl.LSHLinear(16, 20, policy="top", family=sl.DWTA(2, 3, bin_size=4),
                      rebuild=rebuild.Exponential(2),
                      dropout=0.1, **hidden),
         sl.Linear(20, 12, dtype="bfloat16")],
    ):
        yield sl.Network(layers, random_state=0, n_threads=1), X, Y


class Model:
    """Networks: inference and training work after loading."""

    suffix = ".safetensors"

    def seeds(self, folder):
        path, rng = Path(folder) / "sound.safetensors", np.random.default_rng(0)
        X, Y = (sp.random_array((64, 20), density=0.3, format="csr", dtype=np.float32, rng=rng),
                np.arange(64) % 12)
        files = []
        for layers, loss, x in (
            ([sl.Linear(20, 8, activation="relu"), sl.LSHLinear(8, 12, density=0.5)], "softmax", X),
            ([sl.LSHLinear(20, 16, density=0.3, active="sample", activation="relu"),
              sl.Linear(16, 12)], "bce", X),
            ([sl.LSHLinear(20, 12, density=0.5, family=sl.DWTA(2, 3, bin_size=4),
                           policy="vanilla")], "softmax",
             X.toarray()),
            ([sl.Linear(20, 12)], "softmax", X),
        ):
            sl.Network(layers, loss=loss, random_state=0).fit(x, Y, epochs=1, batch_size=16,
                                                              verbose=False).save(path)
            files.append(path.read_bytes())
        for net, x, y in deep_networks():
            net.fit(x, y, epochs=1, batch_size=16, verbose=False).save(path)
            files.append(path.read_bytes())
        net = sl.Network([sl.Linear(20, 8), sl.LSHLinear(8, 12, density=0.5)],
                         random_state=0).initialize(X, Y)
        net.refine(X, Y, threshold=0, verbose=False).save(path)
        files.append(path.read_bytes())
        for thresholds in ("one", "per-label"):
            net.calibrate(X, Y, kind="labels", thresholds=thresholds).save(path)
            files.append(path.read_bytes())
        return files

    def make(self, rng, seeds):
        return damaged(rng, seeds) if rng.random() < 0.4 else well_formed(rng, seeds)

    def read(self, path):
        net = sl.load(path, n_threads=1)
        expect(all(np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()
                   for layer in net.layers),
               "a weight is not finite")
        X = np.linspace(-1, 1, 4 * net.n_features, dtype=np.float32).reshape(4, -1)
        with np.errstate(all="ignore"):  # weights of 3e38 are valid and may overflow
            for x in (X, sp.csr_array(np.maximum(X, 0))):
                ids, _ = net.topk(x, 3)
                expect(ids.min() >= -1 and ids.max() < net.n_labels, "an id is out of range")
                if net.calibration is not None:
                    p = net.predict_proba(x)
                    expect((p >= 0).all() and (p <= 1).all(), "a probability is none")
                    net.predict_labels(x)
            Y = sp.csr_array(np.eye(4, net.n_labels, dtype=np.float32))
            diverging(lambda: net.partial_fit(X, Y))


class Named(Model):
    """Taggers and recommenders: names are found, explained and added after loading."""

    def seeds(self, folder):
        path = Path(folder) / "sound.safetensors"
        texts = [f"word{i % 7} word{i % 5} naïve 日本" for i in range(60)]
        tags = [[f"tag{i % 7}", f"tag{i % 5}"] for i in range(60)]
        files = []
        for words, y in ((sl.TextVectorizer(), tags), (sl.TextVectorizer(n_features=32), tags),
                         (sl.TextVectorizer((1, 1), min_df=0.1), [row[0] for row in tags])):
            sl.Tagger(words, hidden=4, hold_out=20, random_state=0).fit(texts, y).save(path)
            files.append(path.read_bytes())
        sl.Tagger(hidden=4, hold_out=20, threshold="per-tag", random_state=0).fit(
            texts, tags).save(path)
        files.append(path.read_bytes())
        sl.Recommender(hidden=4, random_state=0).fit([[*row, "x"] for row in tags]).save(path)
        files.append(path.read_bytes())
        return files

    def read(self, path):
        model = sl.load(path, n_threads=1)
        with np.errstate(all="ignore"):
            if isinstance(model, sl.Recommender):
                found = [model.recommend(list(model.items_[:3]), k=4)]
                names = set(model.items_)
            elif isinstance(model, sl.Tagger):
                found = model.predict_topk(["word1 word2 naïve", "日本"], 4)
                model.predict(["word1 word2"])
                model.explain("word1 word2 naïve", model.tags_[0])
                names = set(model.tags_)
            else:
                return
        expect(all(name in names for row in found for name, _ in row), "a name is unknown")


class Saved(sl.callbacks.Callback):
    """Save the state of the training after one step in each of the first two epochs."""

    def __init__(self, path, files):
        self.path, self.files, self.n_steps = path, files, 0

    def on_step(self, network):
        self.n_steps += 1
        if self.n_steps in (2, 5):  # of three steps per epoch: one in the first, one in the second
            network.save(self.path, training_state=True)
            self.files.append(self.path.read_bytes())


class Ended(sl.callbacks.Callback):
    """End the training after an epoch: a file may contain any number of epochs."""

    def on_epoch_end(self, network, entry):
        return True


class Checkpoint(Model):
    """Networks with the state of their training: the training can be resumed after loading."""

    def seeds(self, folder):
        path, files = Path(folder) / "sound.safetensors", []
        optimizers = (sl.Adam(1e-2, schedule="linear", clip_norm=1.0, second_moment="row",
                              state_dtype="bfloat16"),
                      sl.SGD(0.1, momentum=0.5))
        networks = [*deep_networks()]
        layers = [sl.Linear(10, 8), sl.LSHLinear(8, 12, density=0.5, family=sl.SimHash(3, 2))]
        networks += [(sl.Network(layers, loss="bce", random_state=0, n_threads=1),
                      sp.csr_array(networks[0][1]), networks[0][2])]
        for (net, x, y), optimizer in zip(networks, (*optimizers, None), strict=True):
            net.fit(x, y, epochs=3, batch_size=16, verbose=False, optimizer=optimizer,
                    validation=(x[:4], y[:4]),
                    callbacks=[sl.callbacks.EarlyStopping(), Saved(path, files)])
        return files

    def read(self, path):
        net = sl.load(path, n_threads=1)
        X = np.random.default_rng(2).standard_normal((48, net.n_features), dtype=np.float32)
        with np.errstate(all="ignore"):
            outcome(lambda: diverging(lambda: net.resume(
                X, np.arange(48) % min(12, net.n_labels), verbose=False,
                callbacks=[sl.callbacks.EarlyStopping(), Ended()])))
        super().read(path)


class Index:
    """Indexes: queries and changes work after loading."""

    suffix = ".safetensors"

    def __init__(self):
        rng = np.random.default_rng(0)
        self.W, self.bias = (rng.standard_normal((60, 8), dtype=np.float32),
                             np.linspace(-1, 1, 60, dtype=np.float32))
        self.X = rng.standard_normal((40, 8), dtype=np.float32)

    def seeds(self, folder):
        path, files = Path(folder) / "sound.safetensors", []
        for options in ({}, {"family": sl.SimHash(3, 4), "plan": "probes"},
                        {"family": sl.DWTA(2, 3, bin_size=4)},
                        {"family": sl.MinHash(1, 4, bits=4), "sketch_bits": 0, "dynamic": True},
                        {"family": sl.CrossPolytope(1, 3, dims=4), "sketch_bits": 64,
                         "scaling": 0.3}):
            index = sl.LSHIndex(random_state=0, n_threads=1, **options).fit(
                self.W, self.bias, queries=self.X)
            index.remove([3, 7])
            index.save(path)
            files.append(path.read_bytes())
        for ids in (np.arange(60) * 7, [f"n{i}" for i in range(60)]):
            sl.LSHIndex(random_state=0, n_threads=1).fit(self.W, self.bias, ids=ids).save(path)
            files.append(path.read_bytes())
        return [*files, self._with_cells(path)]

    def _with_cells(self, path):
        """Build cells by hand: an index with so few neurons has none."""
        sl.LSHIndex(random_state=0, plan="sketches").fit(self.W, self.bias,
                                                         queries=self.X).save(path)
        tensors, config = _file.read(path)
        n = len(tensors["ids"])
        means = np.random.default_rng(1).standard_normal((5, 9), dtype=np.float32)
        tensors |= {"cell_centroids": means, "cell_means": means,
                    "cell": np.arange(n, dtype=np.int32) % 5}
        config["n_cells_probed"] = 2
        _files.write_checked(path, tensors, _file.FORMAT, json.dumps(config))
        self.read(path)
        return path.read_bytes()

    make = Model.make

    def read(self, path):
        index = sl.LSHIndex.load(path, self.W, self.bias, n_threads=1)
        with np.errstate(all="ignore"):
            for x in (self.X, self.X[:1]):
                self.expect_answers(index, x)
                if index.family is not None:
                    expect_valid_csr(index.query(x, 8))
            names = range(60) if index._ids is None else index._ids.values
            index.update(self.W, [names[0], names[3], names[59]])
            index.remove([names[1]])
            self.expect_answers(index, self.X[:3])

    @staticmethod
    def expect_answers(index, x):
        ids, scores = index.search(x, 3)
        if index._ids is None:
            expect_answers(ids, scores, 60)
        else:
            expect(set(ids.ravel().tolist()) <= {*index._ids.values.tolist(), -1, ""},
                   "an id is none of those that were given")


class Served:
    """Converted networks: inference works after loading, with weights in memory and mapped."""

    suffix = ".safetensors"

    def seeds(self, folder):
        path, rng = Path(folder) / "sound.safetensors", np.random.default_rng(0)
        X, files = rng.standard_normal((64, 8), dtype=np.float32), []
        for plan, storage in (("rows", "int8"), ("lsh", "float32"), ("lsh", "bfloat16"),
                              ("dense", "bfloat16"), ("int8", "float32")):
            with planned(plan):
                net = _conversion.convert(layers_of(8, 48, 64), np.maximum(X, 0),
                                          storage=storage, error=0.5, random_state=0, n_threads=1)
            expect(any(plan in layer.plan.values() for layer in net.layers),
                   f"no layer is served by the plan {plan}")
            net.save(path)
            files.append(path.read_bytes())
        for storage in ("bfloat16", "int8"):
            net, X, _ = refined_network()
            with planned("lsh"):
                sl.InferenceNetwork.from_network(net, X, storage=storage, random_state=0,
                                                 n_threads=1).save(path)
            files.append(path.read_bytes())
        return files

    make = Model.make

    def read(self, path):
        for mmap in (False, True):
            net = sl.InferenceNetwork.load(path, mmap=mmap, n_threads=1)
            expect_inference(net)


def refined_network():
    """Return (network, X, Y): a network with classifiers, trained on sparse rows."""
    rng = np.random.default_rng(0)
    X = sp.random_array((64, 20), density=0.3, format="csr", dtype=np.float32, rng=rng)
    Y = np.arange(64)
    net = sl.Network([sl.Linear(20, 8, activation="relu"), sl.LSHLinear(8, 64, density=0.5)],
                     random_state=0, n_threads=1)
    return net.fit(X, Y, epochs=1, verbose=False).refine(X, Y, threshold=0, n_candidates=5,
                                                         verbose=False), X, Y


class Trained:
    """Networks of the library: inference works after conversion of the file."""

    suffix = ".safetensors"

    def seeds(self, folder):
        path, files = Path(folder) / "sound.safetensors", []
        net, _, _ = refined_network()
        for training_state in (False, True):
            net.save(path, training_state=training_state)
            files.append(path.read_bytes())
        return files

    make = Model.make

    def read(self, path):
        try:
            expect_inference(sl.from_file(path, n_threads=1))
        except TypeError as error:  # where the format is damaged: weights of another program
            raise ValueError(*error.args) from error


class Weights:
    """Weights of other programs: inference works after conversion."""

    def __init__(self, suffix):
        self.suffix = suffix

    def seeds(self, folder):
        arrays = {}
        for layer in layers_of(6, 9, 5):
            arrays |= {f"{layer.name}.weight": layer.weight, f"{layer.name}.bias": layer.bias}
        path = Path(folder) / f"sound{self.suffix}"
        files = []
        if self.suffix == ".npz":
            for save in (np.savez, np.savez_compressed):
                save(path, **arrays, step=3)
                files.append(path.read_bytes())
            return files
        for dtype, numbers in (("F32", np.float32), ("F16", np.float16)):
            files.append(
                pack({name: (dtype, list(a.shape), a.astype(numbers).tobytes())
                      for name, a in arrays.items()},
                     {"format": "pt", "config": "{}"}))
        halves = {
            name: ("BF16", list(a.shape), (a.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            for name, a in arrays.items()}
        return [*files, pack(halves, {"format": "pt", "config": "{}"})]

    def make(self, rng, seeds):
        return (damaged(rng, seeds) if self.suffix == ".npz" or rng.random() < 0.4
                else well_formed(rng, seeds))

    def read(self, path):
        try:
            expect_inference(sl.from_file(path, upcast=True, n_threads=1))
        except TypeError as error:  # documented for arrays that are not floats; a valid refusal
            raise ValueError(*error.args) from error


class StateDict:
    """State dicts of PyTorch: inference works after conversion, and no code runs."""

    suffix, make = ".pt", staticmethod(damaged)

    def seeds(self, folder):
        import torch

        path, files = Path(folder) / "sound.pt", []
        arrays = {f"{layer.name}.{what}": torch.from_numpy(getattr(layer, what))
                  for layer in layers_of(6, 9, 5) for what in ("weight", "bias")}
        for saved in (arrays, {"state_dict": arrays, "epoch": 3},
                      {name: array.bfloat16() for name, array in arrays.items()}):
            torch.save(saved, path)
            files.append(path.read_bytes())
        return files

    def read(self, path):
        try:
            expect_inference(sl.from_file(path, upcast=True, n_threads=1))
        except TypeError as error:  # documented for arrays that are not floats; a valid refusal
            raise ValueError(*error.args) from error


class Shards:
    """The index of safetensors files in several parts, which are sound."""

    suffix, make = ".safetensors.index.json", staticmethod(damaged)

    def seeds(self, folder):
        weights = {f"{layer.name}.{what}": f"part-{i}.safetensors"
                   for i, layer in enumerate(layers_of(6, 9, 5)) for what in ("weight", "bias")}
        return [json.dumps({"metadata": {"total_size": 576}, "weight_map": weights}).encode()]

    def read(self, path):
        for i, layer in enumerate(layers_of(6, 9, 5)):
            part = Path(path).parent / f"part-{i}.safetensors"
            if not part.exists():
                part.write_bytes(pack(
                    {f"{layer.name}.{what}": ("F32", list(a.shape), a.tobytes())
                     for what in ("weight", "bias") for a in [getattr(layer, what)]}, {}))
        try:
            expect_inference(sl.from_file(path, n_threads=1))
        except FileNotFoundError as error:  # documented for a part that is missing
            raise ValueError(*error.args) from error


def fasttext_model(bucket, ngrams):
    """The bytes of a supervised model of fastText, with four words and three labels."""
    rng, words = np.random.default_rng(0), (b"one", b"two", b"gr\xc3\xb6\xc3\x9fe", b"</s>")
    labels = tuple(b"__label__%d" % i for i in range(3))
    data = struct.pack("<2i12id", 793712314, 12, 5, 5, 5, 1, 5, ngrams, 3, 3, bucket,
                       2 * (ngrams > 1), 3 * (ngrams > 1), 100, 1e-4)
    data += struct.pack("<3i2q", 7, 4, 3, 50, -1)
    for entries, kind in ((words, 0), (labels, 1)):
        data += b"".join(entry + b"\0" + struct.pack("<qb", 9, kind) for entry in entries)
    for n in (4 + (bucket if ngrams > 1 else 0), 3):
        data += struct.pack("<?2q", 0, n, 5) + rng.standard_normal((n, 5)).astype("<f4").tobytes()
    return data


class FastText:
    """Supervised models of fastText: texts get their labels."""

    suffix, make = ".bin", staticmethod(damaged)

    def seeds(self, folder):
        return [fasttext_model(0, 1), fasttext_model(20, 3)]

    def read(self, path):
        expect_labels(sl.from_fasttext(path, n_threads=1))


def expect_labels(net):
    with np.errstate(all="ignore"):
        labels, _ = net.topk(["one two größe", "", "three\ntwo"], 1)
    expect(all(label in net.labels for row in labels for label in row), "a label is none")


class WordVectors:
    """Word vectors as text."""

    suffix, make = ".vec", staticmethod(damaged)

    def seeds(self, folder):
        rows = "\n".join(f"word{i} {0.5 * i} -1 {i}e-1" for i in range(5))
        return [f"5 3\n{rows}\n".encode(), rows.encode()]

    def read(self, path):
        words, vectors = sl.datasets.read_vec(path)
        expect(len(words) == len(vectors) and vectors.dtype == np.float32 and vectors.ndim == 2
               and np.isfinite(vectors).all(), "the vectors are not those of the words")


class Converted:
    """Converted models of fastText, scikit-learn and implicit, as files of this library."""

    suffix, make = ".safetensors", Model.make

    def seeds(self, folder):
        path = Path(folder) / "sound.safetensors"
        path.with_suffix(".bin").write_bytes(fasttext_model(20, 3))
        files = []
        estimator = EstimatorNetwork(FittedClassifier([], np.array(list("abcde")), False, []))
        estimator.network = _conversion.convert(layers_of(6, 9, 5), None,
                                                kind=sl.InferenceNetwork)
        factors, _ = layers_of(6, 9, 5)
        for net in (sl.from_fasttext(path.with_suffix(".bin")), estimator,
                    sl.from_implicit(factors.weight)):
            net.save(path)
            files.append(path.read_bytes())
        return files

    def read(self, path):
        kind = _files.metadata(path).get("format")
        with np.errstate(all="ignore"):
            if kind == TEXT_FORMAT:
                expect_labels(sl.TextNetwork.load(path, n_threads=1))
            elif kind == FACTOR_FORMAT:
                net = sl.FactorNetwork.load(path, n_threads=1)
                expect_answers(*net.recommend(np.ones((2, net.network.n_features)), N=3),
                               net.network.n_labels)
            else:
                net = sl.EstimatorNetwork.load(path, n_threads=1)
                found = net.predict(np.ones((2, net.network.n_features), np.float32))
                if sp.issparse(found):
                    expect(found.shape == (2, len(net.classes_)), "not a column for each class")
                else:
                    expect(np.isin(found, net.classes_).all(), "a class is none")


class Onnx:
    """ONNX files."""

    suffix, make = ".onnx", staticmethod(damaged)

    def seeds(self, folder):
        from onnx import TensorProto, helper, numpy_helper

        one, two = layers_of(6, 9, 5)
        constants = [numpy_helper.from_array(a, name) for name, a in
                     (("W1", one.weight.T), ("b1", one.bias), ("W2", two.weight), ("b2", two.bias))]
        nodes = [helper.make_node("MatMul", ["x", "W1"], ["a"]),
                 helper.make_node("Add", ["a", "b1"], ["b"]),
                 helper.make_node("Relu", ["b"], ["c"]),
                 helper.make_node("Gemm", ["c", "W2", "b2"], ["y"], transB=1)]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
        model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants),
                                  opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        return [model.SerializeToString()]

    def read(self, path):
        expect_inference(sl.from_onnx(path, upcast=True, n_threads=1))


class OnnxWithTrunk(Onnx):
    """ONNX files that are cut at a layer."""

    def seeds(self, folder):
        import onnx
        from onnx import helper

        model = onnx.ModelProto()
        model.ParseFromString(super().seeds(folder)[0])
        model.graph.node[2].op_type = "Tanh"
        model.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], axis=-1))
        model.graph.output[0].name = "p"
        return [model.SerializeToString()]

    def read(self, path):
        try:
            net = sl.from_onnx(path, head="W2", upcast=True, n_threads=1)
            if len(net.inputs) == 1:
                net(np.ones((2, 6), np.float32))
        except TypeError as error:  # documented for weights and inputs of other types
            raise ValueError(*error.args) from error


def layers_of(*sizes):
    """Return affine layers with ReLU between them."""
    rng = np.random.default_rng(0)
    return [Affine(f"fc{i}", rng.standard_normal((n_out, n_in), dtype=np.float32),
                   rng.standard_normal(n_out,
            dtype=np.float32), "relu" if i < len(sizes) - 2 else None)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes))]


@contextmanager
def planned(plan):
    """Make conversions use this plan, for small layers too, whatever the timings say."""
    choose, limits = (_conversion._Conversion._choose,
                      (_conversion.MIN_WEIGHTS, _conversion.MIN_INDEX_NEURONS))

    def with_plan(self, i, trials, *rest):
        if plan in trials:
            times = dict.fromkeys(trials[plan].times, 1e-9)
            trials[plan] = trials[plan]._replace(times=times)
        return choose(self, i, trials, *rest)

    (_conversion._Conversion._choose, _conversion.MIN_WEIGHTS,
     _conversion.MIN_INDEX_NEURONS) = with_plan, 1, 32
    try:
        yield
    finally:
        _conversion._Conversion._choose = choose
        _conversion.MIN_WEIGHTS, _conversion.MIN_INDEX_NEURONS = limits


def expect_inference(net):
    """Check that inference with a converted network gives valid ids and scores."""
    X = np.linspace(-1, 1, 20 * net.n_features, dtype=np.float32).reshape(20, -1)
    with np.errstate(all="ignore"):
        for x in (X, X[:1], sp.csr_array(np.maximum(X, 0))):
            ids, _ = net.topk(x, 3)
            expect(ids.min() >= -1 and ids.max() < net.n_labels, "an id is out of range")
            net.decision_function(x)


READERS = {
    "xmc": Text(),
    "xmc-gz": Text(".txt.gz", lambda text: gzip.compress(text, mtime=0)),
    "xmc-bz2": Text(".txt.bz2", bz2.compress),
    "xmc-xz": Text(".txt.xz", lzma.compress),
    "jsonl": Records("jsonl", ".jsonl"),
    "jsonl-gz": Records("jsonl", ".jsonl.gz", lambda text: gzip.compress(text, mtime=0)),
    "csv": Records("csv", ".csv"),
    "fasttext": Records("fasttext", ".txt"),
    "csr": Rows(),
    "model": Model(),
    "named": Named(),
    "checkpoint": Checkpoint(),
    "index": Index(),
    "served": Served(),
    "trained": Trained(),
    "safetensors": Weights(".safetensors"),
    "npz": Weights(".npz"),
}
READERS |= {"shards": Shards(), "fasttext-bin": FastText(), "vec": WordVectors(),
            "converted": Converted()}
if importlib.util.find_spec("torch"):
    READERS["state-dict"] = StateDict()
if importlib.util.find_spec("pyarrow"):
    READERS["parquet"] = Records("parquet", ".parquet")
if importlib.util.find_spec("onnx"):
    READERS["onnx"] = Onnx()
    if importlib.util.find_spec("onnxruntime"):
        READERS["onnx with a trunk"] = OnnxWithTrunk()


def try_input(name, seeds, seed, number, path):
    """Return "read" or "refused"; raise AssertionError, or what the reader wrongly raises."""
    reader = READERS[name]
    path.write_bytes(reader.make(random.Random(f"{seed} {name} {number}"), seeds))
    try:
        reader.read(os.fspath(path))
    except ValueError as error:
        expect(type(error) in (ValueError, _xmc_text.FileFormatError),
               f"{type(error).__name__} instead of ValueError")
        expect(path.name in str(error) and len(str(error)) < 2000,
               f"the message does not name the file or is too long: {str(error)[:300]!r}")
        return "refused"
    return "read"


def seeds_of(name, folder):
    """Return the valid files of a reader, after checking that it reads them."""
    path = Path(folder) / ("sound" + READERS[name].suffix)
    seeds = READERS[name].seeds(folder)
    for data in seeds:
        path.write_bytes(data)
        READERS[name].read(os.fspath(path))
    return seeds


# --- processes ------------------------------------------------------------------------------------


def is_sanitized():
    return "asan" in os.environ.get("LD_PRELOAD", "")


def child(name, seed, begin, end, memory_mb, seconds):
    """Try inputs begin .. end; print a line of JSON per finding and one with the counts."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=FOLDER) as folder:
        seeds = seeds_of(name, folder)
        path = Path(folder) / ("input" + READERS[name].suffix)
        # shadow memory takes terabytes of address space, and AddressSanitizer has its own limit
        if not is_sanitized():
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory_mb * 2**20,) * 2)
        counts = Counter()
        for number in range(begin, end):
            # if the process dies, the last line names the input
            print(number, file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                counts[try_input(name, seeds, seed, number, path)] += 1
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"[:500]
                print(json.dumps({"number": number, "finding": text, "at": place(error)}),
                      flush=True)
                counts["findings"] += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps({"counts": counts}), flush=True)


def place(error):
    """Return the place in the package where an error was raised."""
    at, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "sparselsh" in file.parts:
            at = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def run(name, seed, begin, n_inputs, memory_mb=MEMORY_MB, seconds=SECONDS):
    """Return (Counter of outcomes, list of findings) of a reader.

    A process that dies is a finding; a new process continues with the next input.
    """
    counts, findings, end = Counter(), [], begin + n_inputs
    options = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
               "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:"
                               f"max_allocation_size_mb={memory_mb}:"
                               f"hard_rss_limit_mb={4 * memory_mb}"}
    while begin < end:
        with tempfile.TemporaryFile("w+") as log:
            done = subprocess.run(
                [sys.executable, "-P", __file__, "--child", name, "--seed",
                 str(seed), "--begin", str(begin),
                 "--inputs", str(end - begin), "--memory", str(memory_mb),
                 "--seconds", str(seconds)],
                stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | options)
            log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
            lines = log.read().splitlines()
        numbers = [i for i, line in enumerate(lines) if line.isdigit()]
        for line in map(json.loads, done.stdout.splitlines()):
            counts.update(line.get("counts", {}))
            findings += [line] if "finding" in line else []
        if done.returncode == 0:
            break
        if not numbers:
            raise RuntimeError("\n".join(lines))
        last = int(lines[numbers[-1]])
        text = f"the process ended with {done.returncode}: " + " | ".join(
            lines[numbers[-1] + 1:])[:1500]
        findings.append({"number": last, "finding": text, "at": ""})
        counts["findings"] += 1
        counts["before a death"] += last - begin
        begin = last + 1
    return counts, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", default=list(READERS), metavar="READER",
                        help=", ".join(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=int, default=0,
                        help="number of the first input (default: 0)")
    parser.add_argument("--inputs", type=int, default=5000,
                        help="number of inputs per reader (default: 5000)")
    parser.add_argument("--memory", type=int, default=MEMORY_MB,
                        help="limit in MB for reading a file (default: 1024)")
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help="limit in seconds for reading a file (default: 20)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child, given.seed, given.begin, given.begin + given.inputs,
                     given.memory, given.seconds)
    total = 0
    for name in given.readers:
        counts, findings = run(name, given.seed, given.begin, given.inputs,
                               given.memory, given.seconds)
        print(f"{name:11} {given.inputs:7,} inputs:",
              ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())))
        total += len(findings)
        for finding in findings[:50]:
            print(f"    {finding['number']}: {finding['at']} {finding['finding']}")
    return total > 0


if __name__ == "__main__":
    sys.exit(main())
