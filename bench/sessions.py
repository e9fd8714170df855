"""The next item of a session: Recommender, with and without votes, beside neighbors in NumPy.

    python -P bench/sessions.py TRAIN TEST
    python -P bench/sessions.py TRAIN --validate 0.05 --only sparselsh vsknn --seeds 0

TRAIN and TEST are XMC text in the order of SR-GNN: a row per item that follows, whose features are
the last ten items with the values 0.8^age (a repeated item has the largest of its values, or their
sum) and whose label is the next item; rows of a session follow each other. The sessions are rebuilt
from them. With --validate the last sessions, which hold this fraction of the training rows, are the
test. Every test row is a query.

Contenders, with the defaults of their sources:

- sparselsh: Recommender, defaults; "network": the same with neighbors=0.
- vsknn: vector multiplication session-based kNN (Ludewig and Jannach 2018): the 100 nearest of the
  1,000 latest sessions that share an item; items of the query weigh place / length, and votes
  1 - 0.1 age of the item shared last.
- itemknn: items by the cosine of the sessions of the last item, regularized by 20 sessions (Hidasi
  and others, ICLR 2016, section 4).

HR@20 and MRR@20 in percent. CPU seconds of training on one thread by default; a query is a call of
`recommend` with a list of names for sparselsh, and one row of the arrays for the others: the median
of 300, in microseconds. "Batch" is the CPU time per row of all queries in one call.
"""
import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table

K, N_LAST = 20, 10
POWERS = 0.8 ** np.arange(N_LAST)
TOLERANCE = 6e-3  # values have three digits
N_SINGLE = 300


# --- sessions -----------------------------------------------------------------------------------


def encoded(session, summed):
    """The row of a session, as {item: value}."""
    row = {}
    for age, item in enumerate(reversed(session[-N_LAST:])):
        row[item] = row.get(item, 0) + POWERS[age] if summed or item not in row else row[item]
    return row


def decoded(row, summed):
    """A session whose row this is, or None."""
    if not summed:
        ages = {round(np.log(value) / np.log(0.8)): item for item, value in row.items()}
        session, item = [], None
        for age in range(max(ages) + 1):  # a gap is an item that comes again
            item = ages.get(age, item)
            session.insert(0, item)
        return session
    length = int(np.argmin(np.abs(np.cumsum(POWERS) - sum(row.values())))) + 1
    rest, session = dict(row), []

    def fill():
        age = len(session)
        if age == length:
            return all(abs(value) < 3 * TOLERANCE for value in rest.values())
        for item, value in rest.items():
            if value > (1 - TOLERANCE) * POWERS[age] - TOLERANCE:
                rest[item] -= POWERS[age]
                session.append(item)
                if fill():
                    return True
                session.pop()
                rest[item] += POWERS[age]
        return False

    return session[::-1] if fill() else None


def rebuilt(X, Y):
    """(sessions, places): lists of items, and (session, place of the label) of each row."""
    X, labels, n = X.tocsr(), Y.tocsr().indices.tolist(), X.shape[0]
    rows = [dict(zip(X.indices[a:b].tolist(), X.data[a:b].tolist(), strict=True))
            for a, b in itertools.pairwise(X.indptr.tolist())]
    summed = X.data.max() > 1.01

    def follows(session, row):
        want = encoded(session, summed)
        return want.keys() == row.keys() and all(
            abs(want[item] - value) < TOLERANCE * value + 1e-3 for item, value in row.items())

    def chain(order):
        sessions, places = [], [None] * n
        for i in order:
            if not (sessions and follows(sessions[-1], rows[i])):
                sessions.append(decoded(rows[i], summed))
            sessions[-1].append(labels[i])
            places[i] = len(sessions) - 1, len(sessions[-1]) - 1
        return sessions, places

    few = min(n, 3000)
    is_ascending = len(chain(range(few))[0]) < len(chain(range(few - 1, -1, -1))[0])
    sessions, places = chain(range(n) if is_ascending else range(n - 1, -1, -1))
    if not is_ascending:
        sessions.reverse()
        places = [(len(sessions) - 1 - s, p) for s, p in places]
    return sessions, places


# --- contenders ---------------------------------------------------------------------------------


class Sparselsh:
    """Recommender with some options."""

    def __init__(self, **options):
        self.options = options

    def fit(self, sessions, n_items, seed, n_threads):
        names = [[str(item) for item in row] for row in sessions]
        began = time.process_time()
        self.model = sl.Recommender(random_state=seed, n_threads=n_threads,
                                    **self.options).fit(names)
        return time.process_time() - began

    def queries(self, sessions):
        return [[str(item) for item in row] for row in sessions]

    def best(self, queries):
        return [[int(name) for name, _ in pairs]
                for pairs in self.model.recommend(queries, k=K, exclude_seen=False)]


class Neighbors:
    """Sessions as rows of a sparse matrix."""

    def fit(self, sessions, n_items, seed, n_threads):
        began = time.process_time()
        lengths = [len(row) for row in sessions]
        items = np.concatenate(sessions)
        self.rows = sp.csr_array((np.ones(len(items), np.float32), items,
                                  np.concatenate([[0], np.cumsum(lengths)])),
                                 shape=(len(sessions), n_items))
        self.rows.sum_duplicates()
        self.rows.data[:] = 1
        self.columns = self.rows.T.tocsr()
        return time.process_time() - began

    def queries(self, sessions):
        return sessions

    def best(self, queries):
        return [self.one(query) for query in queries]

    @staticmethod
    def top(items, votes):
        found = np.argsort(-votes, kind="stable")[:K]
        return items[found][votes[found] > 0].tolist()


class VSKNN(Neighbors):
    n_sampled, n_neighbors = 1000, 100

    def one(self, query):
        weight, age = {}, {}
        for place, item in enumerate(query):
            weight[item], age[item] = (place + 1) / len(query), len(query) - 1 - place
        runs = {item: self.columns.indices[self.columns.indptr[item]:self.columns.indptr[item + 1]]
                for item in weight}
        sessions = np.unique(np.concatenate(list(runs.values())))[-self.n_sampled:]
        similarity, last = np.zeros(len(sessions)), np.full(len(sessions), np.inf)
        for item, run in runs.items():
            is_in = np.isin(sessions, run, assume_unique=True)
            similarity[is_in] += weight[item]
            last[is_in] = np.minimum(last[is_in], age[item])
        near = np.argsort(-similarity, kind="stable")[:self.n_neighbors]
        votes = similarity[near] * np.maximum(1 - 0.1 * last[near], 0)
        rows = self.rows[sessions[near]]
        items, where = np.unique(rows.indices, return_inverse=True)
        return self.top(items, np.bincount(where, np.repeat(votes, np.diff(rows.indptr)),
                                           len(items)))


class ItemKNN(Neighbors):
    regularization = 20

    def fit(self, sessions, n_items, seed, n_threads):
        seconds = super().fit(sessions, n_items, seed, n_threads)
        began = time.process_time()
        together = (self.columns @ self.rows).tocoo()
        counts = self.columns.sum(axis=1)
        i, j = together.coords
        value = together.data / (np.sqrt(counts[i] * counts[j]) + self.regularization)
        value[i == j] = 0
        self.similarity = sp.csr_array((value, (i, j)), shape=together.shape)
        return seconds + time.process_time() - began

    def one(self, query):
        a, b = self.similarity.indptr[query[-1]:query[-1] + 2]
        return self.top(self.similarity.indices[a:b], self.similarity.data[a:b])


CONTENDERS = {
    "sparselsh": ("sparselsh", Sparselsh), "network": ("sparselsh, neighbors=0",
                                                       lambda: Sparselsh(neighbors=0)),
    "vsknn": ("VS-kNN", VSKNN), "itemknn": ("item-kNN", ItemKNN)}


def measured(contender, sessions, n_items, queries, labels, seed, n_threads):
    """Figures of one training."""
    train_s = contender.fit(sessions, n_items, seed, n_threads)
    asked = contender.queries(queries)
    began = time.process_time()
    best = contender.best(asked)
    batch_us = 1e6 * (time.process_time() - began) / len(asked)
    ranks = np.array([found.index(label) + 1 if label in found else np.inf
                      for found, label in zip(best, labels, strict=True)])
    single = []
    for query in asked[::max(1, len(asked) // N_SINGLE)]:
        began = time.perf_counter()
        contender.best([query])
        single.append(time.perf_counter() - began)
    return [100 * np.isfinite(ranks).mean(), 100 * (1 / ranks).mean(), train_s,
            1e6 * statistics.median(single), batch_us]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test", nargs="?")
    parser.add_argument("--validate", type=float, help="fraction of the training rows, from the "
                        "end, that is the test")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if (args.test is None) == (args.validate is None):
        parser.error("give TEST or --validate")

    X, Y = sl.datasets.read_xmc(args.train)
    sessions, places = rebuilt(X, Y)
    if args.validate is None:
        X_test, Y_test = sl.datasets.read_xmc(args.test, n_features=X.shape[1],
                                              n_labels=Y.shape[1])
        asked, places = rebuilt(X_test, Y_test)
    else:
        cut = places[int((1 - args.validate) * len(places))][0]
        asked, sessions = sessions[cut:], sessions[:cut]
        places = [(s, p) for s in range(len(asked)) for p in range(1, len(asked[s]))]
    queries = [asked[s][:p] for s, p in places]
    labels = [asked[s][p] for s, p in places]
    print(f"{len(sessions):,} sessions of {sum(map(len, sessions)) / len(sessions):.2f} items, "
          f"{len(queries):,} queries", file=sys.stderr)

    rows = []
    for name in args.only:
        title, make = CONTENDERS[name]
        seeds = args.seeds if name in ("sparselsh", "network") else args.seeds[:1]
        for seed in seeds:
            figures = measured(make(), sessions, X.shape[1], queries, labels, seed, args.threads)
            rows.append([f"{title}, seed {seed}" if len(seeds) > 1 else title,
                         *(f"{figure:,.2f}" for figure in figures[:2]), f"{figures[2]:,.1f}",
                         *(f"{figure:,.0f}" for figure in figures[3:])])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(markdown_table(["contender", "HR@20", "MRR@20", "training, CPU s", "query, µs",
                          "batch, µs"], rows))


if __name__ == "__main__":
    main()
