"""Supervised models of fastText, converted for inference."""
import struct

import numpy as np
import pytest

import sparselsh as sl

WORDS = [*(f"word{i}" for i in range(20)), "größe", "naïve", "東京", "b1", "b2", "</s>"]
LABELS = [f"__label__tag{i}" for i in range(17)]
TEXTS = [f"{WORDS[20 + i % 3]} word{i % 17} word{i % 5} b{i % 7}" for i in range(100)]


def content(rng, loss=3, model=3, ngrams=1, minn=0, maxn=0, bucket=1000, dim=8, version=12,
            quantized=0, pruned=-1):
    """The bytes of a model with random weights."""
    n_rows = len(WORDS) + (bucket if ngrams > 1 or maxn else 0)
    out = struct.pack("<2i12id", 793712314, version, dim, 5, 5, 1, 5, ngrams, loss, model, bucket,
                      minn, maxn, 100, 1e-4)
    out += struct.pack("<3i2q", len(WORDS) + len(LABELS), len(WORDS), len(LABELS), 500, pruned)
    for entries, kind in ((WORDS, 0), (LABELS, 1)):
        for i, entry in enumerate(entries):
            out += entry.encode() + b"\0" + struct.pack("<qb", 100 - i, kind)
    for n in (n_rows, len(LABELS)):
        values = rng.standard_normal((n, dim)).astype("<f4")
        out += struct.pack("<?2q", quantized, n, dim) + values.tobytes()
    return out


OPTIONS = {"words": {}, "ngrams": {"loss": 4, "ngrams": 3},
           "subwords": {"ngrams": 2, "minn": 1, "maxn": 4}}


NEW = ["größe word3 unseen 東京", "", "b1 b2\nb3", "naïve  word1 word2 word3 word4"]


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_and_probabilities_are_those_of_fasttext(rng, tmp_path, name):
    fasttext = pytest.importorskip("fasttext")
    path = tmp_path / "m.bin"
    path.write_bytes(content(rng, **OPTIONS[name]))
    model = fasttext.load_model(str(path))
    fast = sl.from_fasttext(path, TEXTS, random_state=0)
    assert fast.labels == model.get_labels() == LABELS
    texts = [text.replace("\n", " ") for text in NEW] + TEXTS[:50]
    labels, scores = fast.topk(texts, 17)
    for text, row, z in zip(texts, labels, scores, strict=True):
        known = dict(zip(*model.predict(text, k=-1), strict=True))
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        if name == "ngrams":  # each label by itself
            p = 1 / (1 + np.exp(-z))
        # fastText adds 1e-5 to probabilities, and has sigmoids in steps of 1/32: 1/4 of it at 0
        np.testing.assert_allclose([known[label] for label in row], p, rtol=0, atol=8e-3)
    np.testing.assert_array_equal(fast.topk(NEW, 3)[1], scores[:len(NEW), :3])


def test_rows_of_the_table_follow_from_the_words(rng, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(content(rng))
    fast = sl.from_fasttext(path)
    rows = fast.transform(["word3 word3 unseen", ""])
    # two of three words are known, and the end of the line is one
    assert rows[[0]].indices.tolist() == [3, 25] and rows[[1]].indices.tolist() == [25]
    np.testing.assert_allclose(rows[[0]].data, [2 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"loss": 1}, "has the loss hs, whose outputs are nodes of a tree"),
    ({"model": 2}, "holds word vectors and no classifier"),
    ({"version": 11}, "is of version 11 of the format"),
    ({"quantized": 1}, r"its input matrix is quantized \(\.ftz\)"),
    ({"pruned": 5}, "its dictionary is pruned"),
])
def test_other_models_are_refused_with_what_to_do(rng, tmp_path, options, message):
    path = tmp_path / "m.bin"
    path.write_bytes(content(rng, **options))
    with pytest.raises(ValueError, match=r"m\.bin: " + message):
        sl.from_fasttext(path)


def test_damaged_models_are_refused(rng, tmp_path):
    path, whole = tmp_path / "m.bin", content(rng)
    for n in (0, 4, 30, 100, 400, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"m\.bin: (not a \.bin file|its .* is damaged)"):
            sl.from_fasttext(path)
    for place in range(8, 120):  # arguments and sizes
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x85]) + whole[place + 1:])
        try:
            sl.from_fasttext(path).topk(["word1 word2"], 1)
        except ValueError as error:
            assert "m.bin" in str(error)


@pytest.mark.parametrize("options", [{"ngrams": 2}, {"minn": 1, "maxn": 3}])
@pytest.mark.parametrize("bucket", [0, -3])
def test_ngrams_without_buckets_are_refused(rng, tmp_path, options, bucket):
    path = tmp_path / "m.bin"
    whole = bytearray(content(rng, **options))
    whole[8 + 4 * 8:8 + 4 * 9] = struct.pack("<i", bucket)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"m\.bin: its matrices have 1026 and 17 rows, for 26 "):
        sl.from_fasttext(path)


def test_negative_lengths_of_ngrams_mean_none(rng, tmp_path):
    # as in fastText, which compares lengths from 1 on with them
    path, found = tmp_path / "m.bin", []
    for minn in (-2**31, 0, 1):
        path.write_bytes(content(rng, ngrams=-5, minn=minn, maxn=2))
        net = sl.from_fasttext(path)
        net.save(tmp_path / "net")
        found.append(sl.TextNetwork.load(tmp_path / "net").transform(TEXTS).indices)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_wrong_texts_are_refused(rng, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(content(rng))
    fast = sl.from_fasttext(path)
    with pytest.raises(TypeError, match="texts must be a sequence of texts, got 'one'"):
        fast.topk("one")
    with pytest.raises(ValueError, match="k must be"):
        fast.topk(["one"], 18)


def test_networks_of_texts_are_saved_and_loaded(rng, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(content(rng, **OPTIONS["subwords"]))
    net = sl.from_fasttext(path, TEXTS, random_state=0)
    net.save(tmp_path / "net")
    loaded = sl.TextNetwork.load(tmp_path / "net")
    assert loaded.labels == net.labels
    for a, b in zip(net.topk(NEW, 5), loaded.topk(NEW, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FileNotFoundError, match="is no directory; create it"):
        net.save(tmp_path / "no" / "net")
    sl.InferenceNetwork.save(net.network, tmp_path / "other")
    with pytest.raises(ValueError, match=r"not one of sparselsh\.texts"):
        sl.TextNetwork.load(tmp_path / "other")


@pytest.mark.parametrize("header", ["3 2\n", ""], ids=["header", "no header"])
def test_word_vectors_are_read_from_text(tmp_path, header):
    path = tmp_path / "w.vec"
    path.write_text(f"{header}one 1 -2.5\ngröße 3e-1 0 \nNew York 1 1\n", encoding="utf-8")
    words, vectors = sl.datasets.read_vec(path)
    assert words == ["one", "größe", "New York"] and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.float32([[1, -2.5], [0.3, 0], [1, 1]]))
    assert sl.LSHIndex(random_state=0).fit(vectors, ids=words).search(vectors, 1)[0].shape == (3, 1)


@pytest.mark.parametrize("text, message", [
    ("", "has no word vectors"), ("2 2\na 1 2\n", "has 1 words, and its first line says 2"),
    ("1 2\na 1 x\n", "line 2 has a value that is no number"),
    ("1 2\na 1 nan\n", "line 2 must have a word and 2 finite numbers"),
    ("a 1 2\nb 1\n", "line 2 must have a word and 2 finite numbers"),
])
def test_damaged_word_vectors_are_refused_by_their_line(tmp_path, text, message):
    path = tmp_path / "w.vec"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"w\.vec: {message}"):
        sl.datasets.read_vec(path)
