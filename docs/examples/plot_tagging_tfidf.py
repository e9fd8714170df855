"""
Tagging text with TF-IDF
========================

Which modules does a piece of code come from? The text is what every Python brings along, the source of its standard
library: nothing is downloaded. Functions are the documents, and the names of the module that a function stands in, such
as ``asyncio`` and ``events`` for ``asyncio/events.py``, are its tags.
"""

# %%
# The documents
# -------------
# A document is the text of one function, a tag a folder or a file that it was found in. `MultiLabelBinarizer` makes
# a sparse indicator of the tags: as many columns as there are tags, a one for each tag of a document.

import ast
import random
import sysconfig
import warnings
from pathlib import Path

from sklearn.preprocessing import MultiLabelBinarizer

root = Path(sysconfig.get_paths()["stdlib"])
texts, tags = [], []
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings"} & set(parts):
        continue
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old code in strings of new Pythons
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        continue
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 3:
            texts.append("\n".join(lines[node.lineno - 1:node.end_lineno]))
            tags.append({part for part in parts if part != "__init__"})

order = random.Random(0).sample(range(len(texts)), min(8000, len(texts)))
texts, tags = [texts[i] for i in order], [tags[i] for i in order]
n_test = len(texts) // 5
binarizer = MultiLabelBinarizer(sparse_output=True)
Y = binarizer.fit_transform(tags).tocsr()
print(f"{len(texts):,} functions, {Y.shape[1]} tags, {Y.nnz / Y.shape[0]:.2f} a function")

# %%
# Five lines
# ----------
# A pipeline turns text into TF-IDF rows and these into tags. With softmax the tags of a document share its probability.

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from sparselsh.estimators import LSHClassifier

model = make_pipeline(TfidfVectorizer(sublinear_tf=True, token_pattern=r"[^\W\d]\w+", min_df=2),
                      LSHClassifier(loss="softmax", max_iter=15, random_state=0))
model.fit(texts[n_test:], Y[n_test:])

# %%
# What it has learned
# -------------------
# `predict_topk` ranks tags; `predict` gives an indicator, as sparse as the one that went in.

import sparselsh as sl

best, scores = model[-1].predict_topk(model[:-1].transform(texts[:n_test]), k=3)
print(f"The best tag is right: {sl.metrics.precision_at_k(Y[:n_test], best, 1):.1%}")
predicted = model.predict(texts[:n_test])
right = predicted.multiply(Y[:n_test]).sum()
print(f"{predicted.nnz:,} tags given, {right / predicted.nnz:.1%} of them right; {right / Y[:n_test].nnz:.1%} of all "
      "tags found")
for i in range(3):
    first_line = texts[i].strip().splitlines()[0]
    print(f"{first_line:60.60}  {', '.join(binarizer.classes_[best[i]])}  (true: {', '.join(sorted(tags[i]))})")

# %%
# The training
# ------------
# The network behind the estimator keeps its history.

ax = model[-1].network_.plot_history()

# %%
# How many labels?
# ----------------
# A few hundred tags are few: a network computes all of them. From some thousand on the output layer computes only the
# neurons that hashing finds (``density="auto"``), and the same five lines serve: an indicator of a million columns is
# never made dense, neither in training nor by `predict`.
