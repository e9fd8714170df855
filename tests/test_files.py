"""Files: what replacing one keeps, what is refused, what is left, and what a checksum covers."""
import errno
import json
import os
import stat
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support import assert_same_bits

import sparselsh as sl
from sparselsh import _files
from sparselsh._arrays import bfloat16

POSIX = os.name == "posix"
posix = pytest.mark.skipif(not POSIX, reason="needs POSIX")


def small(value=1.0, **options):
    net = sl.Network([sl.Linear(4, 3, **options)], random_state=0)
    net.layers[0].set_weights(np.full((3, 4), value))
    return net


def temporary_files(folder):
    return [name for name in os.listdir(folder) if name.endswith(".part")]


# ---- what a file that replaces another keeps


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_the_mode_of_the_file_is_kept(tmp_path, mode):
    path = tmp_path / "net"
    small().save(path)
    path.chmod(mode)
    small(2).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert sl.load(path).layers[0].weight[0, 0] == 2


@posix
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        small().save(tmp_path / "net")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o640


@posix
def test_nobody_else_can_read_a_private_file_while_it_is_written(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"")
    path.chmod(0o600)
    with _files.replacing(path) as file:
        file.write(b"secret")
        name, = temporary_files(tmp_path)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes")
def test_extended_attributes_are_kept(tmp_path):
    path = tmp_path / "net"
    small().save(path)
    try:
        os.setxattr(path, "user.origin", b"here")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    small(2).save(path)
    assert os.getxattr(path, "user.origin") == b"here"


@pytest.mark.skipif(not POSIX or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept(tmp_path):
    path = tmp_path / "net"
    small().save(path)
    os.chown(path, 12345, 54321)
    small(2).save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@pytest.mark.skipif(not POSIX or os.geteuid() != 0, reason="only root gives files away")
def test_a_group_that_cannot_be_kept_gets_no_rights(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "no")

    path = tmp_path / "net"
    small().save(path)
    os.chown(path, -1, 54321)
    path.chmod(0o664)
    monkeypatch.setattr(os, "fchown", refuse)
    small(2).save(path)
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (os.getegid(), 0o604)


@pytest.mark.skipif(not hasattr(os, "listxattr"), reason="no extended attributes")
@pytest.mark.parametrize("code, is_saved", [(errno.ENOTSUP, True), (errno.EIO, False)])
def test_attributes_that_the_file_system_lacks_are_no_error(tmp_path, monkeypatch, code, is_saved):
    def fail(path):
        raise OSError(code, os.strerror(code), path)

    path = tmp_path / "net"
    small().save(path)
    monkeypatch.setattr(os, "listxattr", fail)
    if is_saved:
        small(2).save(path)
    else:
        with pytest.raises(OSError, match=r"net"):
            small(2).save(path)
    assert sl.load(path).layers[0].weight[0, 0] == (2 if is_saved else 1)
    assert not temporary_files(tmp_path)


def test_a_symbolic_link_stays_one(tmp_path):
    small().save(tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    small(2).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sl.load(tmp_path / "target").layers[0].weight[0, 0] == 2


# ---- what is refused


@posix
def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    rows = np.eye(3, dtype=np.float32)
    saves = {
        "network": small().save,
        "index": sl.LSHIndex(random_state=0).fit(np.eye(8, dtype=np.float32)).save,
        "csr": lambda path: sl.datasets.write_csr(path, rows, [0, 1, 2]),
        "text": lambda path: sl.datasets.write_xmc(path, rows, [0, 1, 2]),
    }
    for name, save in saves.items():
        for path in (tmp_path / "pipe", os.devnull):
            with pytest.raises(ValueError, match=r"is a device or a pipe.*name of a file"):
                save(path)
            assert not os.path.isfile(path), name
    with pytest.raises(ValueError, match="device or a pipe"):
        sl.callbacks.Checkpoint(os.devnull).on_begin(small())


def test_names_have_up_to_255_bytes(tmp_path):
    path = tmp_path / ("é" * 121 + ".safetensors")  # 254 bytes
    small().save(path)
    assert sl.load(path).n_labels == 3 and len(os.listdir(tmp_path)) == 1
    with pytest.raises(OSError) as caught:
        small().save(tmp_path / ("x" * 256))
    assert "x" * 256 in str(caught.value)


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_an_error_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, name):
    path = tmp_path / "net"
    small().save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if name == "write":  # of the second array
            parts = [_files.parts_of, full]
            patch.setattr(_files, "parts_of", lambda array: parts.pop(0)(array))
        else:
            patch.setattr(_files.os, name, full)
        with pytest.raises(OSError, match="No space left") as caught:
            small(2).save(path)
    assert caught.value.filename == str(path) and caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net"]


# ---- what a killed process leaves


KILLED = """if True:
    import os, signal, sys
    from sparselsh import _files
    with _files.replacing(sys.argv[1]) as file:
        file.write(b"half")
        file.flush()
        print("ready", flush=True)
        if sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.readline()
"""


@posix
def test_what_a_killed_process_has_left_is_swept_by_the_next_write(tmp_path):
    path = tmp_path / "net"
    subprocess.run([sys.executable, "-P", "-c", KILLED, str(path), "kill"], stdout=subprocess.PIPE,
                   check=False)
    assert len(temporary_files(tmp_path)) == 1
    small().save(tmp_path / "another")
    assert len(temporary_files(tmp_path)) == 1, "it may belong to a write of another file"
    small().save(path)
    assert temporary_files(tmp_path) == []


@posix
def test_the_file_of_a_process_that_still_writes_is_not_swept(tmp_path):
    path = tmp_path / "net"
    with subprocess.Popen([sys.executable, "-P", "-c", KILLED, str(path), "live"], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        small().save(path)
        assert len(temporary_files(tmp_path)) == 1
        process.communicate("\n")
    assert process.returncode == 0
    assert path.read_bytes() == b"half" and temporary_files(tmp_path) == []


# ---- what a file holds


@posix
def test_a_temporary_file_that_is_swept_as_it_is_made_is_made_again(tmp_path, monkeypatch):
    # another process may lock, and remove, the file before its own writer has locked it
    import fcntl

    calls, lock = [], fcntl.flock

    def late(handle, how):
        calls.append(how)
        if len(calls) == 1:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")
        return lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    small(3).save(tmp_path / "net")
    assert len(calls) == 2 and not temporary_files(tmp_path)
    assert sl.load(tmp_path / "net").layers[0].weight[0, 0] == 3


def test_a_file_that_came_out_shorter_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net"
    small().save(path)
    parts = _files.parts_of
    monkeypatch.setattr(_files, "parts_of", lambda array: [p[:-1] for p in parts(array)])
    with pytest.raises(OSError, match="bytes were written instead of"):
        small(2).save(path)
    monkeypatch.undo()
    assert sl.load(path).layers[0].weight[0, 0] == 1 and not temporary_files(tmp_path)


def test_equal_networks_are_equal_files(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6), np.float32), rng.integers(0, 5000, 40)
    contents = set()
    for _ in range(3):
        scratch = [np.full(5000 * i, 77, np.int32) for i in range(1, 40)]  # to be found in memory
        del scratch
        net = sl.Network([sl.Linear(6, 8), sl.LSHLinear(8, 5000, density=0.05)], random_state=0)
        net.fit(X, y, epochs=1, verbose=False)
        for entry in net.history:
            entry.update(seconds=0, cpu_seconds=0, samples_per_second=0)
        net.training_progress.seconds = net.training_progress.cpu_seconds = 0
        for options in ({}, {"indexes": True}, {"training_state": True}):
            net.save(tmp_path / "net", **options)
            contents.add((str(options), (tmp_path / "net").read_bytes()))
    assert len(contents) == 3


def saved_network(**options):
    return lambda path: small().save(path, **options)


def saved_index(path):
    sl.LSHIndex(random_state=0).fit(np.eye(40, dtype=np.float32)).save(path)


def saved_inference_network(path):
    sl.InferenceNetwork.from_network(small()).save(path)


@pytest.mark.parametrize("save", [
    saved_network(), saved_network(indexes=True), saved_network(training_state=True), saved_index,
    saved_inference_network])
def test_a_file_is_written_once(tmp_path, monkeypatch, save):
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replaced.append(b) or replace(a, b))
    save(tmp_path / "file")
    assert replaced == [str(tmp_path / "file")]


def test_a_file_is_a_safetensors_file_whose_arrays_are_aligned(tmp_path):
    from safetensors.numpy import load_file

    arrays = {"bytes": np.arange(3, dtype=np.uint8), "a": np.arange(6.0).reshape(2, 3),
              "f": np.float32([1, 2, 3]), "half": np.arange(5, dtype=np.uint16),
              "flags": np.array([True, False, True]), "none": np.zeros((0, 4), np.int32),
              "turned": np.arange(12, dtype=np.int64).reshape(3, 4).T, "one": np.array(7)}
    _files.write_checked(tmp_path / "file", arrays, "kind", "{}")
    for read in (load_file(tmp_path / "file"), _files.read(tmp_path / "file", "kind")[0]):
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            assert_same_bits(read[name], np.ascontiguousarray(array).reshape(array.shape))
    for name, (_, _, start) in _files.places_of(tmp_path / "file").items():
        assert start % arrays[name].itemsize == 0


@pytest.mark.parametrize("make", [
    lambda: np.arange(3_000_000, dtype=np.float32).reshape(1000, 3000),
    lambda: np.arange(3_000_000, dtype=np.float32).reshape(1000, 3000).T,
    lambda: bfloat16.Widened(np.arange(3_000_000, dtype=np.uint32).astype(np.uint16)
                             .reshape(1000, 3000) & np.uint16(0x3FFF))],
    ids=["as it is", "transposed", "bfloat16"])
def test_writing_needs_memory_for_a_part_of_an_array(tmp_path, make):
    array = make()
    tracemalloc.start()
    _files.write_checked(tmp_path / "file", {"a": array}, "kind", "{}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * _files.PART_BYTES < 4 * 3_000_000
    read, _ = _files.read(tmp_path / "file", "kind")
    whole = array[:] if not isinstance(array, np.ndarray) else array
    assert_same_bits(read["a"], np.ascontiguousarray(whole))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_files_of_earlier_versions_are_read(tmp_path, options):
    net = small(0.5, **options)
    net.save(tmp_path / "new")
    tensors, metadata = _files.read(tmp_path / "new", "sparselsh.network")
    old = {key: value for key, value in metadata.items() if key != "checksum"}
    _files.write(tmp_path / "plain", tensors, old)
    sums = _files._checksum_of_version_1(tensors, metadata["config"])
    _files.write(tmp_path / "summed", tensors, old | {"checksum": sums})
    for name in ("plain", "summed"):
        assert_same_bits(sl.load(tmp_path / name).layers[0].weight, net.layers[0].weight)
    _files.write(tmp_path / "wrong", tensors, old | {"checksum": str(int(sums) ^ 1)})
    with pytest.raises(ValueError, match=r"wrong: the network in this file is damaged.*checksum"):
        sl.load(tmp_path / "wrong")


def test_the_checksum_of_version_1_is_the_one_that_earlier_versions_wrote():
    import zlib

    tensors = {"b": np.arange(4, dtype=np.int32), "a": np.float32([[1, 2]])}
    value = zlib.crc32(b"config")
    for name in "ab":
        a = tensors[name]
        value = zlib.crc32(a.tobytes(), zlib.crc32(f"{name} {a.dtype} {a.shape}".encode(), value))
    assert _files._checksum_of_version_1(tensors, "config") == str(value)


@pytest.mark.parametrize("wrong", ["", "2-", "2-none", "none", "-1", "2-" + "9" * 5000])
def test_a_checksum_that_is_none_is_refused(tmp_path, wrong):
    small().save(tmp_path / "net")
    tensors, metadata = _files.read(tmp_path / "net", "sparselsh.network")
    _files.write(tmp_path / "net", tensors, metadata | {"checksum": wrong})
    with pytest.raises(ValueError, match=r"net: the network in this file is damaged.*checksum"):
        sl.load(tmp_path / "net")


def test_mapped_arrays_are_left_out_of_the_comparison(tmp_path):
    arrays = {"x.weight": np.ones((4, 4), np.float32), "x.bias": np.ones(4, np.float32)}
    path = tmp_path / "file"
    _files.write_checked(path, arrays, "kind", "{}")
    start = {name: place[2] for name, place in _files.places_of(path).items()}
    whole = path.read_bytes()

    def read(name, mapped):
        damaged = bytearray(whole)
        damaged[start[name] + 1] ^= 8
        path.write_bytes(damaged)
        return _files.read(path, "kind", (lambda n: n.endswith("weight")) if mapped else None)

    assert read("x.weight", True)[0]["x.weight"][0, 0] != 1
    for name, mapped in (("x.weight", False), ("x.bias", True), ("x.bias", False)):
        with pytest.raises(ValueError, match="checksum differs"):
            read(name, mapped)


def test_an_index_is_refused_over_weights_that_differ_in_one_number(tmp_path):
    # a checksum of 256 rows did not see a change of another one
    W = np.random.default_rng(0).standard_normal((2000, 8), dtype=np.float32)
    index = sl.LSHIndex(random_state=0).fit(W)
    index.save(tmp_path / "index")
    sl.LSHIndex.load(tmp_path / "index", W)
    for row, column in ((0, 0), (1, 3), (777, 5), (1999, 7)):
        other = W.copy()
        other[row, column] = np.nextafter(other[row, column], np.float32(9))
        with pytest.raises(ValueError, match="saved over other weights"):
            sl.LSHIndex.load(tmp_path / "index", other)
    swapped = W.copy()
    swapped[[5, 6]] = W[[6, 5]]
    with pytest.raises(ValueError, match="saved over other weights"):
        sl.LSHIndex.load(tmp_path / "index", swapped)


def test_an_optimizer_of_another_class_is_refused_before_the_file_is_written(tmp_path):
    class Mine(sl.Adam):
        pass

    net = sl.Network([sl.Linear(4, 3)], random_state=0)
    net.fit(np.eye(4), [0, 1, 2, 0], optimizer=Mine(), epochs=1, verbose=False)
    with pytest.raises(TypeError, match=r"optimizer must be one of SGD, Adam .*Mine"):
        net.save(tmp_path / "net", training_state=True)
    assert os.listdir(tmp_path) == []
    net.save(tmp_path / "net")
    assert json.loads(_files.read(tmp_path / "net", "sparselsh.network")[1]["config"])


def test_a_network_is_written_once(tmp_path, monkeypatch):
    # it was written twice, one time after the other
    written = []
    real = _files.write_checked
    monkeypatch.setattr(_files, "write_checked",
                        lambda path, *rest: (written.append(path), real(path, *rest)))
    net = sl.Network([sl.Linear(4, 9)], random_state=0)
    net.partial_fit(np.eye(9, 4), np.arange(9)).save(tmp_path / "a")
    net.save(tmp_path / "b", training_state=True)
    assert written == [tmp_path / "a", tmp_path / "b"]
