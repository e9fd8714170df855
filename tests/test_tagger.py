"""Tagger and TextVectorizer: texts and names in, names out."""
import copy
import enum
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same_bits

import sparselsh as sl
from sparselsh import metrics

pytest.importorskip("safetensors")

N_TAGS = 24


def corpus(rng, n=900):
    """Texts of some words of each of their tags, and of words of no tag."""
    texts, tags = [], []
    for _ in range(n):
        own = rng.choice(N_TAGS, rng.integers(1, 4), replace=False)
        words = [f"w{tag}x{rng.integers(6)}" for tag in own for _ in range(3)]
        words += [f"common{rng.integers(30)}" for _ in range(4)]
        texts.append(" ".join(rng.permutation(words)))
        tags.append([f"tag::{tag}" for tag in own])
    return texts, tags


@pytest.fixture(scope="module")
def data():
    texts, tags = corpus(np.random.default_rng(3), 1100)
    return texts[:900], tags[:900], texts[900:], tags[900:]


@pytest.fixture(scope="module")
def tagger(data):
    return sl.Tagger(random_state=0, hidden=32).fit(data[0], data[1])


@pytest.fixture(scope="module")
def sorter(data):
    """A tagger of texts with one tag each."""
    return sl.Tagger(random_state=0, hidden=32).fit(data[0], [row[0] for row in data[1]])


# ---- rows

TEXTS = st.lists(st.text(st.characters(), max_size=30).map(lambda text: f"{text} a1 {text}"),
                 min_size=1, max_size=6)


def sorted_rows(matrix):
    matrix.sort_indices()
    return matrix


@given(TEXTS, st.sampled_from([(1, 1), (1, 2), (2, 3)]), st.booleans(), st.booleans(),
       st.sampled_from([None, "l2"]))
def test_rows_are_those_of_tfidf_vectorizer(texts, ngram_range, sublinear, use_idf, norm):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    options = {"ngram_range": ngram_range, "sublinear_tf": sublinear, "use_idf": use_idf,
               "norm": norm, "min_df": 1}
    theirs = text.TfidfVectorizer(**options)
    try:
        want = sorted_rows(theirs.fit_transform(texts))
    except ValueError:  # no word has so many neighbours
        with pytest.raises(ValueError, match="no word is in min_df=1 of"):
            sl.TextVectorizer(**options).fit(texts)
        return
    ours = sl.TextVectorizer(**options)
    got = ours.fit_transform(texts)
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.indptr, want.indptr)
    np.testing.assert_allclose(got.data, want.data, rtol=2**-23)  # one rounding to float32
    assert_same_bits(got.data, sl.TextVectorizer(**options, n_threads=1).fit_transform(texts).data)


@given(TEXTS, st.sampled_from([(1, 1), (1, 2)]), st.sampled_from([5, 2**18]))
def test_hashed_rows_are_those_of_hashing_vectorizer(texts, ngram_range, n_features):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    want = text.HashingVectorizer(n_features=n_features, ngram_range=ngram_range, norm="l2",
                                  alternate_sign=False).transform(texts)
    got = sl.TextVectorizer(ngram_range, n_features=n_features, use_idf=False,
                            sublinear_tf=False).fit_transform(texts)
    want = sorted_rows(want)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.data, want.data, rtol=2**-23)


def test_frequent_runs_are_kept():
    texts = ["red car", "red bus", "red car here"]
    assert sl.TextVectorizer(min_df=2).fit(texts).get_feature_names_out().tolist() == [
        "car", "red", "red car"]
    assert sl.TextVectorizer(min_df=0.9).fit(texts).get_feature_names_out().tolist() == ["red"]
    assert sl.TextVectorizer(min_df=1, max_features=3).fit(
        texts).get_feature_names_out().tolist() == ["car", "red", "red car"]


def test_a_vectorizer_can_be_pickled(data):
    vectorizer = sl.TextVectorizer().fit(data[0])
    again = pickle.loads(pickle.dumps(vectorizer))
    assert_same_bits(again.transform(data[2]).data, vectorizer.transform(data[2]).data)


@pytest.mark.parametrize("options, error, message", [
    ({"ngram_range": 2}, ValueError, r"ngram_range must be a pair of integers.* got 2"),
    ({"ngram_range": (2, 1)}, ValueError, r"ngram_range\[0\] must be at least 1 and at most 1"),
    ({"min_df": 0}, ValueError, "min_df must be at least 1, got 0"),
    ({"min_df": 1.5}, ValueError, "min_df must be at least 0 and at most 1, got 1.5"),
    ({"n_features": 8, "max_features": 3}, ValueError, "give one of the two"),
    ({"norm": "l1"}, ValueError, "norm must be one of 'l2', got 'l1'"),
])
def test_wrong_parameters_of_a_vectorizer_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sl.TextVectorizer(**options).fit(["red car"])


# ---- answers


def test_tags_are_found_with_their_probabilities(tagger, data):
    found = tagger.predict_topk(data[2], 3)
    best = [row[0][0] in true for row, true in zip(found, data[3], strict=True)]
    assert np.mean(best) > 0.97  # the words of a tag are its own
    assert tagger.score(data[2], data[3]) > 0.95
    for row in found:
        p = [value for _, value in row]
        assert len(row) == 3 and p == sorted(p, reverse=True) and 0 <= p[-1] <= p[0] <= 1
    p = tagger.predict_proba(data[2])
    assert metrics.expected_calibration_error(indicator(data[3], tagger.tags_), p) < 0.03
    np.testing.assert_allclose([row[0][1] for row in found], p.max(axis=1), rtol=1e-5)


def indicator(tags, names):
    places = {name: j for j, name in enumerate(names)}
    out = np.zeros((len(tags), len(names)), np.int8)
    for i, row in enumerate(tags):
        out[i, [places[name] for name in row]] = 1
    return out


def test_predict_names_what_reaches_the_threshold(tagger, data):
    p = tagger.predict_proba(data[2])
    for row, values in zip(tagger.predict(data[2]), p, strict=True):
        want = {tagger.tags_[j] for j in np.flatnonzero(values >= tagger.threshold_)}
        assert set(row) == want
        assert row == sorted(row, key=lambda name: -values[list(tagger.tags_).index(name)])


def test_a_threshold_leaves_out_what_is_below_it(tagger, data):
    rows = tagger.predict_topk(data[2], 5, threshold=0.5)
    assert rows == [[pair for pair in row if pair[1] >= 0.5]
                    for row in tagger.predict_topk(data[2], 5)]
    assert any(rows)


def test_a_lone_text_gets_the_answer_of_a_batch(tagger, sorter, data):
    for model in (tagger, sorter):
        whole = model.predict_topk(data[2][:20], 4)
        alone = [model.predict_topk([text], 4)[0] for text in data[2][:20]]
        assert [[name for name, _ in row] for row in alone] == [
            [name for name, _ in row] for row in whole]
        np.testing.assert_allclose([p for row in alone for _, p in row],
                                   [p for row in whole for _, p in row], rtol=1e-4)


def test_one_string_per_text_is_one_tag(sorter, data):
    assert sorter.one_per_text
    found = sorter.predict(data[2])
    assert found.shape == (len(data[2]),) and found.dtype == object
    assert np.mean([name in true for name, true in zip(found, data[3], strict=True)]) > 0.9
    np.testing.assert_allclose(sorter.predict_proba(data[2]).sum(axis=1), 1, rtol=1e-4)
    assert sorter.score(data[2], list(found)) == 1
    assert [row[0][0] for row in sorter.predict_topk(data[2], 1)] == list(found)


def test_more_tags_than_there_are_gives_all(tagger, data):
    (row,) = tagger.predict_topk(data[2][:1], 500)
    assert sorted(name for name, _ in row) == sorted(tagger.tags_)


def test_no_texts_give_no_answers(tagger, sorter):
    assert tagger.predict([]) == [] and tagger.predict_topk([]) == []
    assert tagger.predict_proba([]).shape == (0, N_TAGS)
    assert sorter.predict([]).shape == (0,)


def test_texts_without_known_words_are_answered(tagger):
    for text in ("", "   ", "zzz unheard"):
        ((best, p), *_), = tagger.predict_topk([text], 2)
        assert best in tagger.tags_ and 0 <= p <= 1


def test_the_words_of_a_tag_explain_it(tagger):
    text = "w3x1 common7 w5x2 w3x1"
    words = tagger.explain(text, "tag::3", n=3)
    assert words[0][0].startswith("w3x1") and words[0][1] > 0
    assert dict(tagger.explain(text, "tag::5"))["w5x2"] > dict(
        tagger.explain(text, "tag::3"))["w5x2"]
    # all weights together are the score, without the constants of the tag
    network, ids = tagger.network_, list(tagger.tags_)
    x = tagger.vectorizer_.transform([text])
    j = ids.index("tag::3")
    z = network.layers[1].weight[j] @ (network.layers[0].weight @ x.toarray()[0])
    z += network.refinement.scale * (network.refinement.weight[[j]] @ x.toarray()[0])[0]
    assert sum(dict(tagger.explain(text, "tag::3", n=100)).values()) == pytest.approx(z, rel=1e-4)


def test_hashed_words_explain_too(data):
    tagger = sl.Tagger(sl.TextVectorizer(n_features=2**16), hidden=16, random_state=0)
    words = tagger.fit(data[0], data[1]).explain("w3x1 common7", "tag::3")
    assert words[0][0] == "w3x1"


def test_few_texts_are_enough_to_begin(rng):
    texts, tags = corpus(rng, 60)
    tagger = sl.Tagger(random_state=0).fit(texts, tags)
    assert tagger.network_.calibration is None
    assert tagger.score(texts, tags) > 0.9
    (row,) = tagger.predict_topk(texts[:1], 2)
    assert row[0][0] in tags[0] and 0 < row[0][1] <= 1


def test_thresholds_per_tag(data, tmp_path):
    tagger = sl.Tagger(random_state=0, hidden=16, threshold="per-tag").fit(data[0], data[1])
    assert tagger.threshold_.shape == (N_TAGS,) and len(set(tagger.threshold_.tolist())) > 1
    tagger.save(tmp_path / "t")
    assert_same_bits(sl.load(tmp_path / "t").threshold_, tagger.threshold_)
    fixed = sl.Tagger(random_state=0, hidden=16, threshold=0.9).fit(data[0], data[1])
    assert fixed.threshold_ == 0.9
    assert sum(map(len, fixed.predict(data[2]))) < sum(map(len, tagger.predict(data[2])))


def test_the_number_of_threads_changes_no_bit(data):
    one, two = (sl.Tagger(random_state=0, hidden=16, n_threads=n).fit(data[0][:600], data[1][:600])
                for n in (1, 2))
    assert_same_bits(one.predict_proba(data[2]), two.predict_proba(data[2]))


# ---- input


def columns(texts, tags):
    """Texts and lists of tags as data frames hold them."""
    yield "tuples", tuple(texts), [tuple(row) for row in tags]
    yield "sets", texts, [set(row) for row in tags]
    yield "repeated", texts, [row + row for row in tags]
    yield "arrays", np.array(texts), [np.array(row) for row in tags]
    yield "object array", np.array(texts, object), np.array([*tags, None], object)[:-1]
    yield "generators", (text for text in texts), (row for row in tags)


@pytest.mark.parametrize("number", range(6))
def test_lists_sets_and_arrays_are_taken(data, tagger, number):
    name, texts, tags = list(columns(data[0], data[1]))[number]
    assert_like(tagger, data, texts, tags, name)


def assert_like(tagger, data, texts, tags, name=""):
    other = sl.Tagger(random_state=0, hidden=32).fit(texts, tags)
    assert other.tags_.tolist() == tagger.tags_.tolist(), name
    assert_same_bits(other.predict_proba(data[2]), tagger.predict_proba(data[2]))


def test_pandas_columns_are_taken(data, tagger):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": data[0], "tags": data[1]})
    frame.index = frame.index[::-1]  # rows are taken by place
    assert_like(tagger, data, frame["text"], frame["tags"])
    whole = pd.DataFrame(indicator(data[1], tagger.tags_), columns=list(tagger.tags_))
    assert_like(tagger, data, frame["text"], whole)
    assert_like(tagger, data, frame["text"], whole.astype(bool))
    assert_like(tagger, data, frame["text"],
                pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(whole), columns=whole.columns))


def test_polars_columns_are_taken(data, tagger):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"text": data[0], "tags": data[1]})
    assert_like(tagger, data, frame["text"], frame["tags"])
    whole = pl.DataFrame(dict(zip(tagger.tags_, indicator(data[1], tagger.tags_).T, strict=True)))
    assert_like(tagger, data, frame["text"], whole)


def test_arrow_columns_are_taken(data, tagger):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": data[0], "tags": data[1]})
    assert_like(tagger, data, table["text"], table["tags"])
    assert_like(tagger, data, table["text"].combine_chunks(), table["tags"].combine_chunks())
    whole = pa.table(dict(zip(tagger.tags_, indicator(data[1], tagger.tags_).T, strict=True)))
    assert_like(tagger, data, table["text"], whole)


@pytest.mark.parametrize("texts, tags, error, message", [
    ("one text", ["a"], TypeError, "texts must be a list of texts, got the string 'one text'; put"),
    (["x y"], "a", TypeError, "tags must be a list of tags, .*got the string 'a'"),
    (["xx", None], ["a", "b"], TypeError, r"texts\[1\] is None: there is no text; leave the row"),
    (["xx", float("nan")], ["a", "b"], TypeError, r"texts\[1\] is nan: there is no text; leave"),
    (["xx", 3], ["a", "b"], TypeError, r"texts\[1\] must be a string, got 3 of type int"),
    (["xx", b"yy"], ["a", "b"], TypeError, r"texts\[1\] must be a string.*of type bytes; decode"),
    (["xx", "  "], ["a", "b"], ValueError, r"texts\[1\] is '  ': a text without words teaches"),
    ([], [], ValueError, "texts must hold at least one text, got none"),
    (["xx"], ["a", "b"], ValueError, "tags must have an entry for each of the 1 rows, got 2"),
    (["xx", "yy"], ["a", None], TypeError, r"tags\[0\] is the string 'a', and other rows are"),
    (["xx", "yy"], [["a"], None], TypeError, r"tags\[1\] is None; give \[\] for a row without"),
    (["xx", "yy"], [1, 2], TypeError, r"tags\[0\] is the number 1; tags are strings, such as '1'"),
    (["xx", "yy"], [["a"], [2]], TypeError, r"tags\[1\] has the number 2 as a tag; tags are str"),
    (["xx", "yy"], [["a"], [None]], TypeError, r"tags\[1\] has the tag None; leave it out"),
    (["xx", "yy"], [["a"], [""]], ValueError, r"tags\[1\] has the tag '', which is no name"),
    (["xx", "yy"], [["a"], [("b",)]], TypeError, r"tags\[1\] has \('b',\) of type tuple"),
    (["xx", "yy"], [["a"], {"b": 1}], TypeError, r"tags\[1\] must be a list of strings, got {'b'"),
    (["xx", "yy"], {"a": 1}, TypeError, "tags must be a list of tags.*got a dict"),
    (["xx", "yy"], [[], []], ValueError, "tags must hold at least one tag, got none"),
    (["x1", "x2", "x3"], ["a,b", "b, c", "c,a"], ValueError,
     r"tags\[0\] is 'a,b', whose parts are tags of other rows, too: give lists, as .*split\(','\)"),
    (["x1", "x2", "x3"], ["a|b", "b", "a"], ValueError, r"tags\[0\] is 'a\|b', whose parts"),
    (["xx", "yy"], [b"a", b"b"], TypeError, r"tags\[0\] must be a list of strings.*; decode it"),
    (["xx", "yy"], [["a"], [b"b"]], TypeError, r"tags\[1\] has b'b' of type bytes.*: decode it"),
    (["xx", "yy"], np.eye(2), TypeError, "tags is a matrix, whose columns have no names"),
    (["xx", "yy"], sp.eye_array(2), TypeError, "tags is a matrix, whose columns have no names"),
    (np.array([["xx", "yy"]]), ["a"], ValueError, r"texts must have one dimension, got shape"),
])
def test_what_is_no_text_or_no_tag_is_refused(texts, tags, error, message):
    with pytest.raises(error, match=message):
        sl.Tagger().fit(texts, tags)


def test_names_with_commas_of_their_own_are_taken():
    texts = ["red car", "blue bus", "green tram"] * 4
    tags = ["Bonn, Germany", "Paris", "Rome, Italy"] * 4
    assert sl.Tagger(random_state=0).fit(texts, tags).predict(texts).tolist() == tags


def test_a_frame_that_is_no_indicator_is_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"tags has 'a' in the column 'tag'; .*frame\['tag'\]"):
        sl.Tagger().fit(["xx", "yy"], pd.DataFrame({"tag": ["a", "b"]}))
    with pytest.raises(TypeError, match="tags has the column 0 of type int; rename columns"):
        sl.Tagger().fit(["xx", "yy"], pd.DataFrame(np.eye(2)))


@pytest.mark.parametrize("options, error, message", [
    ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
    ({"threshold": 1.0}, ValueError, "threshold must be above 0 and below 1, got 1"),
    ({"threshold": "all"}, ValueError, "threshold must be one of 'auto', 'per-tag', got 'all'"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"effort": 1}, ValueError, "effort must be one of 'low', 'default', 'high', got 1"),
    ({"hold_out": -1}, ValueError, "hold_out must be at least 0, got -1"),
    ({"vectorizer": "tfidf"}, TypeError, "vectorizer must have fit_transform.*got 'tfidf'"),
])
def test_wrong_parameters_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sl.Tagger(**options).fit(["red car", "blue bus"], ["a", "b"])


def test_wrong_questions_are_refused(tagger):
    with pytest.raises(ValueError, match="this Tagger is not trained yet; call fit"):
        sl.Tagger().predict(["xx"])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        tagger.predict_topk(["xx"], 0)
    with pytest.raises(ValueError, match="threshold must be at least 0 and at most 1, got 2"):
        tagger.predict_topk(["xx"], threshold=2)
    with pytest.raises(ValueError, match=r"tag is 'tag::33', which the .*did you mean 'tag"):
        tagger.explain("xx", "tag::33")
    with pytest.raises(TypeError, match=r"texts\[0\] must be a string, got 3"):
        tagger.explain(3, "tag::3")


# ---- files


@pytest.mark.parametrize("kind", ["tagger", "sorter"])
def test_a_file_gives_the_same_answers(kind, data, tmp_path, request):
    model = request.getfixturevalue(kind)
    model.save(tmp_path / "model.safetensors")
    for other in (sl.load(tmp_path / "model.safetensors"),
                  sl.Tagger.load(tmp_path / "model.safetensors", n_threads=1)):
        assert isinstance(other, sl.Tagger) and other.one_per_text == model.one_per_text
        assert other.tags_.tolist() == model.tags_.tolist()
        assert list(other.predict(data[2])) == list(model.predict(data[2]))
        assert other.predict_topk(data[2][:9]) == model.predict_topk(data[2][:9])
        assert other.explain("w3x1 w2x2", "tag::3") == model.explain("w3x1 w2x2", "tag::3")
    other.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() != b""
    assert other.get_params()["hidden"] == 32


def test_names_of_any_characters_are_kept(tmp_path):
    tags = ["日本", "naïve\n", "a\tb", "\ud800x"] * 5
    texts = ["red car", "blue bus", "green tram", "old boat"] * 5
    tagger = sl.Tagger(random_state=0).fit(texts, tags)
    tagger.save(tmp_path / "t")
    assert sl.load(tmp_path / "t").predict(texts[:4]).tolist() == tags[:4]


def test_a_network_is_read_as_one_and_no_tagger(tmp_path):
    net = sl.Network([sl.Linear(3, 2)]).fit(np.eye(3), [0, 1, 0], epochs=1, verbose=False)
    net.save(tmp_path / "net")
    assert isinstance(sl.load(tmp_path / "net"), sl.Network)
    with pytest.raises(ValueError, match="holds a Network, no Tagger; read it with"):
        sl.Tagger.load(tmp_path / "net")


def test_a_transformer_of_others(data, tmp_path):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    theirs = text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    tagger = sl.Tagger(theirs, random_state=0, hidden=32).fit(data[0], data[1])
    assert tagger.score(data[2], data[3]) > 0.95
    assert tagger.explain("w3x1", "tag::3")[0][0] == "w3x1"
    assert not hasattr(theirs, "vocabulary_")  # the given one stays as it was
    with pytest.raises(TypeError, match="which this file cannot hold; use pickle"):
        tagger.save(tmp_path / "t")
    again = pickle.loads(pickle.dumps(tagger))
    assert again.predict(data[2]) == tagger.predict(data[2])


def test_a_tagger_can_be_pickled(tagger, data):
    assert pickle.loads(pickle.dumps(tagger)).predict(data[2]) == tagger.predict(data[2])


# ---- scikit-learn


def test_it_is_an_estimator(data, sorter):
    pytest.importorskip("sklearn")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import cross_val_score

    model = sl.Tagger(sl.TextVectorizer(min_df=3), hidden=16, random_state=0)
    assert is_classifier(model) and clone(model).get_params()["vectorizer__min_df"] == 3
    model.set_params(vectorizer__min_df=2, hidden=8)
    assert model.vectorizer.min_df == 2 and model.hidden == 8
    with pytest.raises(ValueError, match="'size' is no argument of Tagger"):
        model.set_params(size=3)
    assert repr(sl.Tagger(hidden=8)) == "Tagger(hidden=8)"
    one = [row[0] for row in data[1]]
    assert cross_val_score(clone(model), data[0], one, cv=2).min() > 0.5


def test_hold_out_leaves_texts_to_train_on():
    texts, tags = ["red apple", "fast car"] * 5, [["fruit"], ["traffic"]] * 5
    with pytest.raises(ValueError, match="hold_out=10 leaves none of the 10 rows"):
        sl.Tagger(hold_out=10).fit(texts, tags)
    with pytest.raises(ValueError, match="hold_out=99 leaves none of the 10 rows"):
        sl.Recommender(hold_out=99).fit([["a", "b"]] * 10)


# ---- validation


def test_a_fraction_is_held_out_and_measured_after_each_epoch(data):
    texts, tags = data[:2]
    found = sl.Tagger(hidden=32, epochs=4, random_state=0).fit(texts, tags, validation=0.2)
    assert len(found.network_.history) == 4
    assert all({"p_at_1", "val_loss"} <= row.keys() for row in found.network_.history)
    # the rows that are held out are those of hold_out: the same network and calibration
    same = sl.Tagger(hidden=32, epochs=4, hold_out=180, random_state=0).fit(texts, tags)
    np.testing.assert_array_equal(found.predict_proba(data[2]), same.predict_proba(data[2]))
    assert found.threshold_ == same.threshold_


@pytest.mark.parametrize("one_per_text", [False, True])
def test_further_texts_are_measured_and_change_nothing(data, one_per_text, tagger, sorter):
    texts, tags, new, new_tags = data
    if one_per_text:
        tags, new_tags = ([row[0] for row in part] for part in (tags, new_tags))
        unknown = "a tag that no text of the training has"
    else:
        unknown = ["a tag that no text of the training has"]
    further = [*new, "words of another tag"], [*new_tags, unknown]
    found = sl.Tagger(hidden=32, random_state=0).fit(texts, tags, validation=further)
    measured = found.network_.history[-1]["p_at_1"]
    wanted = sorter if one_per_text else tagger
    np.testing.assert_array_equal(found.predict_proba(new), wanted.predict_proba(new))
    assert measured > (0.4 if one_per_text else 0.8)  # the others of up to three tags are as likely
    assert len(found.tags_) == N_TAGS
    # P@1 of the network before classifiers are added, of the rows that can be right
    plain = sl.Tagger(hidden=32, refine=False, random_state=0).fit(texts, tags)
    best = [row[0][0] for row in plain.predict_topk(further[0], 1)]
    right = [name == row if one_per_text else name in row
             for name, row in zip(best, further[1], strict=True)]
    n = len(new) if one_per_text else len(new) + 1
    assert measured == pytest.approx(sum(right) / n, abs=0.02)  # calibration may reorder ties


def test_a_training_that_stops_early_keeps_the_best_epoch(data):
    stop = sl.callbacks.EarlyStopping(patience=1)
    found = sl.Tagger(hidden=32, epochs=30, lr=0.05, random_state=0).fit(
        *data[:2], validation=0.2, callbacks=[stop])
    history = found.network_.history
    assert len(history) < 30
    assert max(row["p_at_1"] for row in history) == history[-2]["p_at_1"]


class Interrupted(sl.callbacks.Callback):
    """Ctrl-C in some step."""

    def __init__(self, step):
        self.step, self.n_steps = step, 0

    def on_step(self, network):
        self.n_steps += 1
        if self.n_steps == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [1, 13, 15, 39])  # of 13 steps an epoch, in three
@pytest.mark.parametrize("options", [{}, {"effort": "high", "threshold": "per-tag"}])
def test_an_interrupted_training_goes_on_with_the_same_bits(data, step, options, tmp_path):
    texts, tags, new, _ = data
    options = {"hidden": 16, "epochs": 3, "random_state": 0, **options}
    whole = sl.Tagger(**options).fit(texts, tags)
    path = tmp_path / "run"
    saving = sl.callbacks.Checkpoint(path)
    with pytest.raises(KeyboardInterrupt):
        sl.Tagger(**options).fit(texts, tags, callbacks=[saving, Interrupted(step)])
    del options["random_state"], options["hidden"]  # these are in the file
    again = sl.Tagger(**options).resume(path, texts, tags, callbacks=[saving])
    assert again.hidden == 16
    np.testing.assert_array_equal(again.predict_proba(new), whole.predict_proba(new))
    np.testing.assert_array_equal(again.threshold_, whole.threshold_)
    # the file has the whole training now, and resuming that gives the same again
    same = sl.Tagger(**options).resume(path, texts, tags)
    np.testing.assert_array_equal(same.predict_proba(new), whole.predict_proba(new))
    longer = sl.Tagger(**options).resume(path, texts, tags, epochs=4)
    assert len(longer.network_.history) == 4


def test_a_training_of_other_texts_is_not_resumed(data, tagger, tmp_path):
    texts, tags = data[:2]
    sl.Tagger(hidden=16, random_state=0).fit(
        texts, tags, callbacks=[sl.callbacks.Checkpoint(tmp_path / "run")])
    for other, message in (
            ((texts[:300], tags[:300]), "columns and .* tags, but these texts give .*began with"),
            ((texts, [[str(name)] for name in range(900)]), "columns and 24 tags, but .* 900"),
            ((texts + texts[-1:], tags + tags[-1:]), "must have the 810 rows|columns and")):
        with pytest.raises((ValueError, TypeError), match=message):
            sl.Tagger().resume(tmp_path / "run", *other)
    tagger.save(tmp_path / "done")
    with pytest.raises(ValueError, match=r"no training to continue; give a file of .*Checkpoint"):
        sl.Tagger().resume(tmp_path / "done", texts, tags)
    with pytest.raises(FileNotFoundError):
        sl.Tagger().resume(tmp_path / "none", texts, tags)


@pytest.mark.parametrize("validation, error, message", [
    (0, ValueError, "validation must be at most 0.5 and above 0, got 0"),
    (0.6, ValueError, "validation must be .*at most 0.5"),
    (1e-9, ValueError, "of 900 rows is none; give a larger fraction"),
    (True, TypeError, "a fraction of the texts, or a pair"),
    ("valid.jsonl", TypeError, "a fraction of the texts, or a pair"),
    ((["a"], [["tag::1"]], 3), TypeError, "a fraction of the texts, or a pair"),
    ((["a b"], [["unknown"]]), ValueError, "holds no tag of the texts that are trained on"),
    ((["a b"], []), ValueError, "must have an entry for each of the 1 rows"),
    (([3], [["tag::1"]]), TypeError, r"validation\[0\]\[0\] must be a string"),
])
def test_wrong_validation_is_refused(data, validation, error, message):
    with pytest.raises(error, match=message):
        sl.Tagger().fit(*data[:2], validation=validation)


def test_validation_and_hold_out_contradict_each_other(data):
    with pytest.raises(ValueError, match="in place of hold_out=50; give one of them"):
        sl.Tagger(hold_out=50).fit(*data[:2], validation=0.1)


@pytest.mark.parametrize("n_features", [None, 16])
def test_a_fit_that_fails_leaves_the_vocabulary_of_before(n_features, monkeypatch):
    # the number of texts, and where runs are hashed the vocabulary, were those of the new texts
    vectorizer = sl.TextVectorizer(min_df=1, n_features=n_features).fit(["red apple", "fast car"])
    before = vectorizer.transform(["a red car"]).toarray(), vectorizer.n_texts_

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(sl.TextVectorizer, "_factors", fail)
    for fit in (vectorizer.fit, vectorizer.fit_transform):
        with pytest.raises(MemoryError):
            fit(["slow bus"] * 3)
    assert_same_bits(vectorizer.transform(["a red car"]).toarray(), before[0])
    assert vectorizer.n_texts_ == before[1]


def test_tags_whose_addition_fails_are_not_added(monkeypatch):
    texts, tags = ["red apple", "green pear", "fast car"] * 5, [["fruit"], ["fruit"],
                                                                ["traffic"]] * 5
    tagger = sl.Tagger(hidden=4, random_state=0).fit(texts, tags)
    whole = sl.Tagger(hidden=4, random_state=0).fit(texts, tags)
    more = ["soft rain", "light snow"] * 4, [["weather"], ["weather", "cold"]] * 4

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sl.Network, "grow", fail)
        with pytest.raises(MemoryError):
            tagger.add_tags(*more)
    assert tagger.predict_topk(texts[:3], 5) == whole.predict_topk(texts[:3], 5)
    assert (tagger.add_tags(*more).predict_topk(more[0], 5)
            == whole.add_tags(*more).predict_topk(more[0], 5))


def test_texts_of_a_call_that_is_made_again_count_once(monkeypatch):
    texts, tags = ["red apple", "green pear", "fast car"] * 5, [["fruit"], ["fruit"],
                                                                ["traffic"]] * 5
    more = ["soft rain", "light snow"] * 4, [["weather"], ["weather", "cold"]] * 4
    tagger = sl.Tagger(hidden=4, random_state=0).fit(texts, tags)
    whole = copy.deepcopy(tagger).partial_fit(*more)

    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sl.Network, "partial_fit", fail)
        with pytest.raises(MemoryError):
            tagger.partial_fit(*more)
    assert (tagger._kept.n_seen, tagger.vectorizer_.n_texts_) == (15, 15)
    assert "cold" in tagger.tags_  # a call of two parts, of which the first is complete
    tagger.predict_topk(texts, 5)
    tagger.partial_fit(*more)
    assert (tagger._kept.n_seen, tagger.vectorizer_.n_texts_) == (23, 23)
    for one, other in zip(tagger._kept[:2], whole._kept[:2], strict=True):
        np.testing.assert_array_equal(one.to_scipy().toarray(), other.to_scipy().toarray())
    assert tagger.predict_topk(more[0], 5) == whole.predict_topk(more[0], 5)


def test_epochs_are_checked_before_a_file_is_read(tmp_path):
    with pytest.raises(TypeError, match="epochs must be an integer"):
        sl.Tagger().resume(tmp_path / "nothing", ["a text"], [["tag"]], epochs="two")


def test_a_compressed_tagger_answers_alike_from_its_file(tagger, data, tmp_path):
    texts = data[2]
    small = tagger.compressed()
    small.save(tmp_path / "small.safetensors")
    tagger.save(tmp_path / "large.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "large")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = sl.load(tmp_path / "small.safetensors")
    assert loaded.predict_topk(texts, 2) == small.predict_topk(texts, 2)
    same = [a[0][0] == b[0][0] for a, b in zip(tagger.predict_topk(texts, 1),
                                               loaded.predict_topk(texts, 1), strict=True)]
    assert np.mean(same) > 0.95  # weights of 8 bits: some of two tags of a text change places

    best = loaded.predict_topk(texts[:1], 1)[0][0][0]
    words = [sorted(word for word, _ in model.explain(texts[0], best, 3))
             for model in (tagger, loaded)]
    assert words[0] == words[1]
    for call in (lambda: loaded.add_tags(["new words"], [["new"]]), loaded.compressed,
                 lambda: loaded.partial_fit(texts, data[3])):
        with pytest.raises(ValueError, match="is compressed, and only answers"):
            call()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("threshold", ["auto", "per-tag", 0.3])
@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_a_compressed_tagger_of_a_small_training_answers(single, threshold, storage, tmp_path):
    # of so few texts none are held out, and there is no calibration
    texts = ["red apple", "green pear", "fast car", "slow bus"] * 5
    tags = ["fruit", "fruit", "traffic", "traffic"] * 5
    tagger = sl.Tagger(random_state=0, threshold=threshold, hidden=16)
    tagger.fit(texts, tags if single else [[tag] for tag in tags])
    assert tagger.network_.calibration is None
    small = tagger.compressed(storage)
    small.save(tmp_path / "small")
    loaded, queries = sl.load(tmp_path / "small"), ["a green apple", "the fast bus", ""]
    np.testing.assert_allclose(small.predict_proba(queries), tagger.predict_proba(queries),
                               atol=0.02)
    assert list(small.predict(queries)) == list(tagger.predict(queries))
    for model in (small, loaded):
        assert list(model.predict(queries)) == list(small.predict(queries))
        assert model.predict_topk(queries, 2) == small.predict_topk(queries, 2)
        for text, row in zip(queries, model.predict_topk(queries, 2), strict=True):
            assert dict(model.predict_topk([text], 2)[0]) == pytest.approx(dict(row))
        np.testing.assert_array_equal(model.predict_proba(queries), small.predict_proba(queries))
        assert model.score(texts, tags if single else [[tag] for tag in tags]) == 1


def test_one_text_is_answered_as_one_of_many(tagger, sorter, data):
    texts = [*data[2][:60], "", "none of these words", "naïve w1x2 日本"]
    for model in (tagger, sorter):
        many, named = model.predict_topk(texts, 4), model.predict(texts)
        above = model.predict_topk(texts, 4, threshold=0.3)
        for text, row, names, few in zip(texts, many, named, above, strict=True):
            (alone,) = model.predict_topk([text], 4)
            assert [name for name, _ in alone] == [name for name, _ in row]
            np.testing.assert_allclose([p for _, p in alone], [p for _, p in row], atol=1e-5)
            (own,) = model.predict([text])
            assert own == names
            assert [name for name, _ in model.predict_topk([text], 4, 0.3)[0]] == [
                name for name, _ in few]
    assert type(sorter.predict(texts[:1])) is np.ndarray


def test_one_text_has_the_thresholds_of_many(tagger, data):
    low, each = copy.deepcopy(tagger), copy.deepcopy(tagger)
    low.threshold_ = 1e-6  # which tags reach that are not ranked
    each.threshold_ = np.full(N_TAGS, 0.2, np.float32)
    for model in (low, each):
        many = model.predict(data[2][:20])
        assert [model.predict([text])[0] for text in data[2][:20]] == many


def test_one_text_of_another_vocabulary_is_refused(tagger, data):
    other = copy.deepcopy(tagger)
    other.vectorizer_ = sl.TextVectorizer().fit(data[0][:50])
    with pytest.raises(ValueError, match="features"):
        other.predict_topk(data[2][:1])


def test_one_text_follows_a_network_that_changes(data):
    tagger = sl.Tagger(random_state=0, hidden=16).fit(data[0][:600], data[1][:600])
    text = data[2][0]
    changes = [lambda: tagger.partial_fit(data[0][600:], data[1][600:]),
               lambda: tagger.add_tags(["entirely new words"] * 3, [["new"]] * 3),
               lambda: setattr(tagger.network_.refinement, "scale", 1.0),
               lambda: setattr(tagger.network_, "refinement", None)]
    for change in changes:
        tagger.predict_topk([text])
        change()
        (alone,), (first, _) = tagger.predict_topk([text], 3), tagger.predict_topk([text, text], 3)
        np.testing.assert_allclose([p for _, p in alone], [p for _, p in first], atol=1e-5)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize("make", [np.str_, Colour])
@pytest.mark.parametrize("single", [False, True])
def test_names_are_plain_strings(make, single):
    tags = [make(name) if single else [make(name)] for name in ("red", "blue") * 30]
    tagger = sl.Tagger(epochs=1, random_state=0).fit(["some words"] * 60, tags)
    assert all(type(name) is str for name in tagger.classes_)
    assert tagger.classes_.tolist() == ["blue", "red"]


@pytest.mark.parametrize("frame", ["pandas.DataFrame", "polars.DataFrame", "pyarrow.table"])
@pytest.mark.parametrize("call", ["predict", "predict_proba", "predict_topk"])
def test_a_frame_as_texts_is_refused_by_its_column(tagger, frame, call):
    module, name = frame.split(".")
    values = getattr(pytest.importorskip(module), name)({"title": ["w1x1 w1x2"] * 3})
    with pytest.raises(TypeError, match=r"texts must be.*give one, such as texts\['title'\]"):
        getattr(tagger, call)(values)
    with pytest.raises(TypeError, match=r"texts must be.*give one, such as texts\['title'\]"):
        sl.TextVectorizer().fit(values)
