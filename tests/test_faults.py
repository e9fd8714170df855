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
         "topk after steps", "refine", "tune_refinement", "calibrate, again", "initialize",
         "set_weights", "LSHIndex.update", "LSHIndex.add, ids", "LSHClassifier.fit, again",
         "LSHClassifier.partial_fit, more classes", "TextVectorizer.fit", "Tagger.partial_fit",
         "Recommender.add_items", "save, training_state")


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    library = harness.compiled(tmp_path_factory.mktemp("preload"))
    return library if library is not None else pytest.skip("no compiler")


@pytest.mark.parametrize("name", BRIEF)
def test_a_failed_allocation_leaves_what_was_or_what_can_be_resumed(name, preload):
    n, findings = harness.run("allocations", name, {"most": MOST}, preload)
    assert findings == [] and n


def test_kernels_without_memory_for_their_work_raise_and_leave_no_trace(preload):
    n, findings = harness.run_kernels(preload, MOST // 2)
    assert findings == [] and n


@pytest.mark.parametrize("twice", [False, True], ids=["one Ctrl-C", "two"])
@pytest.mark.parametrize("name", [n for n in BRIEF if n != "save, training_state"])
def test_ctrl_c_at_any_line_leaves_what_was_or_what_can_be_resumed(name, twice):
    n, findings = harness.run("lines", name, {"most": MOST, "twice": twice})
    assert findings == [] and n


@pytest.mark.parametrize("name", ["LSHIndex.update, all", "LSHIndex.add, ids"])
def test_ctrl_c_twice_at_any_moment_leaves_an_index_as_it_was_or_as_it_is_to_be(name):
    # the second one came while what the first one had ended was undone
    n, findings = harness.run("moments", name, {"most": 20 * MOST})
    assert findings == [] and n


@pytest.mark.parametrize("name", ["save, training_state", "InferenceNetwork.save", "write_csr",
                                  "callbacks", "Tagger.save", "shards"])
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


@pytest.mark.parametrize("name", ["model of sparse rows", "model in bfloat16", "checkpoint", "csr"])
def test_saving_takes_at_most_64_MB_of_memory(name):
    n, findings = harness.run("peak", name)
    assert findings == [] and n
