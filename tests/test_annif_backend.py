"""The back end for Annif of docs/annif_backend.py, where Annif is installed."""
import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("annif")
pytest.importorskip("safetensors")

SCRIPT = Path(__file__).parents[1] / "docs" / "annif_backend.py"


class Subjects(list):
    def by_uri(self, uri):
        return next((j for j, subject in enumerate(self) if subject.uri == uri), None)


def documents(rng, n, subjects):
    found = []
    for _ in range(n):
        own = rng.choice(subjects, 2, replace=False)
        text = " ".join(f"w{j}x{rng.integers(5)}" for j in own for _ in range(3))
        found.append(types.SimpleNamespace(text=text, subject_set=set(own.tolist())))
    return types.SimpleNamespace(documents=found)


@pytest.mark.skipif(not SCRIPT.exists(), reason="the sources are not installed")
@pytest.mark.filterwarnings("ignore")  # of Annif and what it imports
def test_subjects_are_suggested_and_learned(tmp_path, rng):
    spec = importlib.util.spec_from_file_location("annif_backend", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = types.SimpleNamespace(
        subjects=Subjects(types.SimpleNamespace(uri=f"http://ex.org/{j}") for j in range(12)),
        analyzer=types.SimpleNamespace(tokenize_words=str.split), datadir=str(tmp_path))
    params = {"limit": 3, "hidden": 16, "ngram": 1, "min_df": 1}
    back_end = module.SparselshBackend("sparselsh", params, project)
    back_end._train(documents(rng, 600, np.arange(10)), params)
    back_end._learn(documents(rng, 80, np.arange(8, 12)), params)

    again = module.SparselshBackend("sparselsh", params, project)
    again.initialize()
    test = documents(rng, 60, np.arange(12)).documents
    found = again._suggest_batch(test, params)
    best = [max(row, key=lambda s: s.score).subject_id for row in found]
    assert np.mean([j in doc.subject_set for j, doc in zip(best, test, strict=True)]) > 0.8
