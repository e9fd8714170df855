"""
Tagging text with TF-IDF
========================

Which modules does a piece of code come from? The texts are the source of Python's standard library,
which every Python has, so nothing is downloaded. Functions are the documents. The tags of a
function are the names of its module, such as ``asyncio`` and ``events`` for ``asyncio/events.py``.
"""

# %%
# The documents
# -------------
# A document is the text of one function, a tag is a folder or a file that contains it.
# `MultiLabelBinarizer` makes a sparse indicator matrix of the tags: one column per tag, and a one
# for each tag of a document.

import ast
import random
import sysconfig
import warnings
from pathlib import Path

from sklearn.preprocessing import MultiLabelBinarizer

root = Path(sysconfig.get_paths()["stdlib"])
skipped = {"site-packages", "test", "tests"}
skipped |= {"idlelib", "lib2to3", "encodings"}
texts, tags = [], []
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if skipped & set(parts):
        continue
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # string literals of older Pythons
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        continue
    lines = source.splitlines()
    names = {part for part in parts if part != "__init__"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        if node.end_lineno - node.lineno >= 3:
            text = lines[node.lineno - 1:node.end_lineno]
            texts.append("\n".join(text))
            tags.append(names)

n = min(8000, len(texts))
order = random.Random(0).sample(range(len(texts)), n)
texts, tags = [texts[i] for i in order], [tags[i] for i in order]
binarizer = MultiLabelBinarizer(sparse_output=True)
Y = binarizer.fit_transform(tags).tocsr()

n_test = n // 5
test_texts, Y_test = texts[:n_test], Y[:n_test]
train_texts, Y_train = texts[n_test:], Y[n_test:]
print(f"{n:,} functions, {Y.shape[1]} tags")
print(f"{Y.nnz / n:.2f} tags per function")

# %%
# The model
# ---------
# A pipeline turns text into TF-IDF rows and these into tags. With softmax the tags of a document
# share its probability.

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from sparselsh.estimators import LSHClassifier

vectorizer = TfidfVectorizer(
    sublinear_tf=True, token_pattern=r"[^\W\d]\w+", min_df=2
)
classifier = LSHClassifier(loss="softmax", max_iter=15, random_state=0)
model = make_pipeline(vectorizer, classifier)
model.fit(train_texts, Y_train)

# %%
# What it has learned
# -------------------
# `predict_topk` ranks tags; `predict` returns an indicator matrix, as sparse as the one that `fit`
# was given.

import sparselsh as sl

rows = vectorizer.transform(test_texts)
best, scores = classifier.predict_topk(rows, k=3)
p_at_1 = sl.metrics.precision_at_k(Y_test, best, 1)
print(f"The best tag is right: {p_at_1:.1%}")

predicted = model.predict(test_texts)
right = predicted.multiply(Y_test).sum()
print(f"{predicted.nnz:,} tags predicted")
print(f"{right / predicted.nnz:.1%} of them are right")
print(f"{right / Y_test.nnz:.1%} of all tags were found")

for i in range(3):
    first_line = texts[i].strip().splitlines()[0]
    print(f"\n{first_line:60.60}")
    print("  predicted:", ", ".join(binarizer.classes_[best[i]]))
    print("  true:", ", ".join(sorted(tags[i])))

# %%
# The training
# ------------
# The network of the estimator keeps the history of its training.

ax = classifier.network_.plot_history()

# %%
# More labels
# -----------
# A few hundred tags are few: the network computes all of them. From some thousand on the output
# layer computes only the neurons that hashing finds (``density="auto"``), with the same code: an
# indicator matrix with a million columns is never made dense, neither in training nor by `predict`.
