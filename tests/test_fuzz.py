"""Some of the inputs of fuzz.py: whatever a file holds, it is read as something sound or refused with a clear error."""
import sys

import numpy as np
import pytest

import sparselsh as sl
from sparselsh import _files

if sys.platform == "win32":
    pytest.skip("fuzz.py limits its processes as POSIX knows it", allow_module_level=True)

import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_soundly_or_refused(name):
    n_inputs = 120
    counts, findings = fuzz.run(name, seed=1, begin=0, n_inputs=n_inputs)
    assert findings == []
    assert counts["read"] + counts["refused"] == n_inputs
    assert counts["read"] and counts["refused"], "the changes reach both what is sound and what is not"


def test_an_input_is_the_same_in_every_run(tmp_path):
    for name, reader in fuzz.READERS.items():
        seeds = fuzz.seeds_of(name, tmp_path)
        one, other = ([reader.make(fuzz.random.Random(f"0 {name} {i}"), seeds) for i in range(5)] for _ in range(2))
        assert one == other, name


def test_a_crash_and_a_hang_are_findings(monkeypatch, tmp_path):
    script = tmp_path / "fuzz.py"  # what run() starts in place of itself
    script.write_text("import os, signal, sys, time\nprint(7, file=sys.stderr, flush=True)\n"
                      "os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(fuzz, "__file__", str(script))
    counts, findings = fuzz.run("xmc", seed=0, begin=7, n_inputs=1)
    assert counts["findings"] == 1 and findings[0]["number"] == 7 and "-11" in findings[0]["finding"]


# ---- what it found


def rewritten(path, kind, change):
    """Write a sound file again with other metadata."""
    tensors, metadata = _files.read(path, kind)
    change(tensors, metadata)
    _files.write(path, tensors, metadata)


def test_a_header_without_rows_is_refused_in_chunks_too(tmp_path):
    # it was taken for one empty row, and so a file cut behind its header was converted
    path = tmp_path / "cut.txt"
    path.write_bytes(b"1 5 5\n")
    for read in (sl.datasets.read_xmc, lambda path: sl.datasets.convert_xmc(path, tmp_path / "cut.csr")):
        with pytest.raises(ValueError, match="line 2: the file ends after 0 of the 1 rows"):
            read(path)
    path.write_bytes(b"0 5 5\n")
    sl.datasets.convert_xmc(path, tmp_path / "empty.csr")
    assert sl.datasets.open_csr(tmp_path / "empty.csr").shape == (0, 5)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.safetensors"
    net = sl.Network([sl.LSHLinear(4, 9, density=0.5, family=sl.SimHash(3, 2))], random_state=0)
    net.fit(np.eye(9, 4), np.arange(9), epochs=1, verbose=False).save(path)
    return path


def test_a_config_nested_without_end_is_refused(model):
    rewritten(model, "sparselsh.network", lambda tensors, metadata: metadata.update(config="[" * 100_000))
    with pytest.raises(ValueError, match=r"net\.safetensors: .*RecursionError"):
        sl.load(model)


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 1), ("BF16", 2)])
def test_numbers_of_a_type_that_numpy_lacks_are_refused(model, dtype, size):
    data = model.read_bytes()
    name = rb'"F32","shape":[9]'
    assert name in data
    changed = data.replace(name, f'"{dtype}","shape":[{36 // size}]'.encode())
    size = int.from_bytes(data[:8], "little") + len(changed) - len(data)
    model.write_bytes(size.to_bytes(8, "little") + changed[8:])
    with pytest.raises(ValueError, match=r"net\.safetensors: a safetensors file with a type of numbers"):
        sl.load(model)


def test_a_family_that_a_file_asks_for_takes_no_more_memory_than_its_neurons_are_worth(model):
    rewritten(model, "sparselsh.network", lambda tensors, metadata: metadata.update(
        config=metadata["config"].replace('"bits": 3, "tables": 2', '"bits": 24, "tables": 255')))
    net = sl.load(model)  # its tables are not made yet
    with pytest.raises(ValueError, match=r"SimHash\(bits=24.*16777216 buckets a table for 9 neurons.*fewer buckets"):
        net.partial_fit(np.eye(9, 4), np.arange(9))


def test_more_probes_than_buckets_are_refused_when_a_model_is_read(model):
    rewritten(model, "sparselsh.network", lambda tensors, metadata: metadata.update(
        config=metadata["config"].replace('"n_probes": 1', '"n_probes": 9')))
    with pytest.raises(ValueError, match=r"net\.safetensors: .*n_probes must be at least 1 and at most 8, got 9"):
        sl.load(model)
