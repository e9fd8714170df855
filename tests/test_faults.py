"""Some faults of each kind; `.ci/faults` tries all of them."""
import os
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the faults need Linux: LD_PRELOAD and limits of resources",
                allow_module_level=True)

from faults import harness

MOST = int(os.environ.get("SPARSELSH_FAULTS", "6"))  # per call
# calls that differ in what they change: the others run in .ci/faults
BRIEF = ("fit, tables", "fit, frozen tables", "fit, sketches on drift", "partial_fit, sketches",
         "topk after steps", "refine", "initialize", "set_weights", "save, training_state")


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    library = harness.compiled(tmp_path_factory.mktemp("preload"))
    return library if library is not None else pytest.skip("no compiler")


@pytest.mark.parametrize("name", BRIEF)
def test_a_failed_allocation_leaves_what_was_or_what_can_be_resumed(name, preload):
    n, findings = harness.run("allocations", name, {"most": MOST}, preload)
    assert findings == [] and n


@pytest.mark.parametrize("twice", [False, True], ids=["one Ctrl-C", "two"])
@pytest.mark.parametrize("name", [n for n in BRIEF if n != "save, training_state"])
def test_ctrl_c_at_any_line_leaves_what_was_or_what_can_be_resumed(name, twice):
    n, findings = harness.run("lines", name, {"most": MOST, "twice": twice})
    assert findings == [] and n


@pytest.mark.parametrize("name", ["save, training_state", "InferenceNetwork.save", "write_csr"])
def test_a_full_disk_and_a_kill_leave_the_old_file_or_the_new_one(name, preload):
    for kind, library in (("full_disk", None), ("kills", preload)):
        n, findings = harness.run(kind, name, {"most": MOST}, library)
        assert findings == [] and n


@pytest.mark.parametrize("kind", harness.subjects("bits"))
def test_a_flipped_bit_is_refused_or_changes_nothing(kind):
    n, findings = harness.run("bits", kind, {"most": 20 * MOST})
    assert findings == [] and n


def test_saving_with_little_memory_gives_a_file_or_a_memory_error():
    n, findings = harness.run("memory", "model", {"most": MOST})
    assert findings == [] and n
