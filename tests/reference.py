"""Reference implementations of the kernels of sparselsh._core, under the same names.

Each follows the formula in the docstring of its kernel in the most obvious way, in float64 and with
Python loops where they are plainer, and returns what the kernel writes into its outputs. A sparse
matrix is (indptr, indices, data), a set of hash tables is a list of lists of sets (table, bucket,
neurons), an optimizer rule is a function (w, m, v, g) -> (w, m, v).
"""
import itertools
import math
import re

import numpy as np

# ---- _hashing


def pack_codes(projections, n_bits):
    n, width = projections.shape
    bits = (projections > 0).reshape(n, width // n_bits, n_bits)
    return (bits << np.arange(n_bits)).sum(axis=2).astype(np.int32)


def code_costs(digits, radix):
    """{code: cost} of every code, each digit given as {option: cost}; for cheapest_codes."""
    codes = {}
    for options in itertools.product(*(digit.items() for digit in digits)):
        code = sum(option * radix**k for k, (option, _) in enumerate(options))
        codes[code] = sum(cost for _, cost in options)
    return codes


def probe_signs(projections, n_bits):
    p = projections.astype(float).reshape(-1, projections.shape[1] // n_bits, n_bits)
    return [[code_costs([{int(x > 0): 0.0, int(x <= 0): x * x} for x in table], 2)
             for table in row] for row in p]


def nearest_vertices(projections, n_dims, n_polytopes):
    def vertices(x):
        on = np.column_stack([x, -x]).ravel()
        return {v: (on.max() - on[v]) ** 2 for v in range(len(on))}

    n_tables = projections.shape[1] // (n_polytopes * n_dims)
    p = projections.astype(float).reshape(-1, n_tables, n_polytopes, n_dims)
    return [[code_costs([vertices(x) for x in table], 2 * n_dims) for table in row] for row in p]


# ---- _projections


def signed_sums(v, signs):
    return v.astype(float) @ signs


def rotate(v, signs, n_out):
    n_rotations, _, order = signs.shape
    H = np.ones((1, 1))
    while len(H) < order:
        H = np.block([[H, H], [H, -H]])
    out = []
    for r in range(n_rotations):
        x = np.zeros((len(v), order))
        x[:, : v.shape[1]] = v
        for round_signs in signs[r]:
            x = (x * round_signs) @ H
        out.append(x)
    return np.concatenate(out, axis=1)[:, :n_out]


# ---- _winners


def lender(seed, b, full):
    if full[b]:
        return b
    for attempt in range(64):
        other = (random_at(seed, b * 64 + attempt) >> 32) * len(full) >> 32
        if full[other]:
            return other
    while not full[other]:
        other = (other + 1) % len(full)
    return other


def winners(v, places, bin_size, n_digits, n_tables, seed):
    out = []
    for row in v.astype(float):
        bins = [{} for _ in range(n_tables * n_digits)]
        for c in np.flatnonzero(row):
            for place in places[c]:
                if place >= 0:
                    bins[place // bin_size][int(place % bin_size)] = row[c]
        full = [len(b) > 0 for b in bins]
        costs = [{slot: (max(b.values()) - x) ** 2 for slot, x in b.items()} or {0: 0.0}
                 for b in bins]
        costs = [costs[lender(seed, b, full)] if any(full) else costs[b] for b in range(len(bins))]
        out.append([code_costs(costs[t * n_digits : (t + 1) * n_digits], bin_size)
                    for t in range(n_tables)])
    return out


def minima(v, n_digits, n_tables, n_bits, seed):
    n_bins = n_digits * n_tables
    out = np.zeros((len(v), n_tables), np.int32)
    for i, row in enumerate(v):
        least = [[] for _ in range(n_bins)]
        for c in np.flatnonzero(row):
            h = random_at(seed, int(c))
            least[(h >> 32) * n_bins >> 32].append(h % 2**32)
        full = [len(b) > 0 for b in least]
        for t in range(n_tables if any(full) else 0):
            h = 0
            for b in range(t * n_digits, (t + 1) * n_digits):
                h = random_at(h, min(least[lender(seed + 1, b, full)]))
            out[i, t] = h >> (64 - n_bits)
    return out


# ---- _buckets


def build(codes, n_buckets):
    """A neuron whose code is -1 is in no bucket of the table."""
    n, n_tables = codes.shape
    return [[{j for j in range(n) if codes[j, t] == b} for b in range(n_buckets)]
            for t in range(n_tables)]


def move(rows, new_codes, codes):
    codes = codes.copy()
    codes[rows] = new_codes
    return codes


def tie_rank(j):
    return j * 0x9E3779B1 % 2**32


def collide(query_codes, codes, min_count, n_best):
    ids = np.full((len(query_codes), n_best), -1, np.int32)
    counts = np.zeros((len(query_codes), n_best), np.int32)
    if query_codes.ndim == 2:
        query_codes = query_codes[:, :, None]
    for i, query in enumerate(query_codes):
        shared = (codes[:, :, None] == query).any(axis=2).sum(axis=1)
        found = [j for j in range(len(codes)) if shared[j] >= max(min_count, 1)]
        found = sorted(found, key=lambda j: (-shared[j], tie_rank(j)))[:n_best]
        ids[i, : len(found)] = found
        counts[i, : len(found)] = shared[found]
    return ids, counts


def table_order(n_tables, seed):
    order = list(range(n_tables))
    for t in range(n_tables):
        swap = t + ((random_at(seed, t) >> 32) * (n_tables - t) >> 32)
        order[t], order[swap] = order[swap], order[t]
    return order


def draw(query_codes, codes, seed, n_wanted):
    """Sets of neurons: whole buckets, and from the last one those with the least random numbers."""
    found = [set() for _ in query_codes]
    for i, probes in enumerate(query_codes):
        own_seed = random_at(seed, i)
        for t in table_order(len(probes), own_seed):
            for b in probes[t][probes[t] >= 0]:
                bucket = set(np.flatnonzero(codes[:, t] == b).tolist()) - found[i]
                inverse = 2**64 - 1 - own_seed
                by_chance = sorted(bucket, key=lambda j: (random_at(inverse, j) >> 32, j))
                found[i].update(by_chance[: n_wanted - len(found[i])])
    return found


# ---- _sparse_products


def dense(indptr, indices, data, n_columns):
    out = np.zeros((len(indptr) - 1, n_columns))
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            out[i, indices[k]] = data[k]
    return out


def sampled_dots(indptr, indices, x, w, bias):
    out = np.zeros(len(indices))
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            out[k] = w[j].astype(float) @ x[i].astype(float) + bias[j]
    return out


def sampled_dots_csr(indptr, indices, x_indptr, x_indices, x_data, w, bias):
    return sampled_dots(indptr, indices, dense(x_indptr, x_indices, x_data, w.shape[1]), w, bias)


def weighted_rows(indptr, indices, data, w, bias):
    out = dense(indptr, indices, data, len(w)) @ w.astype(float)
    return out + bias if len(bias) else out


def sampled_columns(indptr, indices, data, w, x_indptr, x_indices):
    dx = weighted_rows(indptr, indices, data, w, [])
    return np.array([dx[i, c] for i in range(len(dx))
                     for c in x_indices[x_indptr[i] : x_indptr[i + 1]]])


# ---- _sparse_rows


def group_columns(indptr, indices):
    groups = {}  # a dict keeps the order in which columns first occur
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            groups.setdefault(int(indices[k]), []).append((k, i))
    places = [place for group in groups.values() for place in group]
    rows = np.array(list(groups), np.int32)
    starts = np.cumsum([0] + [len(group) for group in groups.values()]).astype(np.int64)
    entries = np.array([k for k, i in places], np.int32)
    samples = np.array([i for k, i in places], np.int32)
    return rows, starts, entries, samples


# ---- _typed_arrays


def block_sums(w, n_rows):
    return np.array([w[start:start + n_rows].astype(float).sum(axis=0)
                     for start in range(0, len(w), n_rows)])


# ---- _updates


def sgd(lr, momentum, nesterov, decay):
    def step(w, m, v, g):
        g = g + decay * w
        if m is None:
            return w - lr * g, m, v
        m = momentum * m + g
        return w - lr * (g + momentum * m if nesterov else m), m, v

    return step


def adam(lr, beta1, beta2, eps, decay, step):
    def apply(w, m, v, g):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        return (1 - lr * decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps), m, v

    return apply


def update_at(rule, w, m, v, where, dw):
    """Apply the rule to the entries `where`, an index of w, with the gradient dw for them."""
    state = [None if a is None else a.astype(float) for a in (w, m, v)]
    stepped = rule(*(None if a is None else a[where] for a in state), dw)
    for array, new in zip(state, stepped, strict=True):
        if array is not None:
            array[where] = new
    return state


def update_rows(rule, w, m, v, rows, dw):
    return update_at(rule, w, m, v, rows, dw.astype(float))


def update_all(rule, w, m, v, dw):
    return update_at(rule, w, m, v, slice(None), dw.astype(float))


def update_grouped(rule, w, m, v, indptr, indices, data, x):
    gradient = dense(indptr, indices, data, len(w)).T @ x.astype(float)
    rows = np.unique(indices)
    return update_at(rule, w, m, v, rows, gradient[rows])


def update_grouped_csr(rule, w, m, v, indptr, indices, data, x_indptr, x_indices, x_data):
    dw = dense(indptr, indices, data, len(w)).T @ dense(x_indptr, x_indices, x_data, w.shape[1])
    touched = dw != 0  # the sums of the tests' values are exact
    return update_at(rule, w, m, v, touched, dw[touched])


def sum_groups(starts, entries, data):
    values = data[entries].astype(float)
    return np.array([values[starts[r] : starts[r + 1]].sum() for r in range(len(starts) - 1)])


# ---- _gradient_norms


def squares(a, run):
    return np.array([(a[first : first + run].astype(float) ** 2).sum()
                     for first in range(0, len(a), run)])


def active_squares(dz, x):
    return ((dz.astype(float).T @ x.astype(float)) ** 2).sum(axis=1)


def grouped_squares(indptr, indices, data, n_columns, x):
    return ((dense(indptr, indices, data, n_columns).T @ x.astype(float)) ** 2).sum(axis=1)


# ---- _gemm


def rounded_to_bfloat16(x):
    """x with eight significant bits, ties to even; for numbers far from the limits of float32."""
    mantissa, exponent = np.frexp(x.astype(float))
    return np.ldexp(np.round(mantissa * 2**8), exponent - 8)


def matmul(a, transpose_a, b, transpose_b, bias):
    a, b = a.astype(float), b.astype(float)
    out = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    return out + bias if len(bias) else out


def active_outputs(x, w, rows, bias):
    return x.astype(float) @ w[rows].astype(float).T + bias[rows]


def active_input_gradient(dz, w, rows):
    return dz.astype(float) @ w[rows].astype(float)


def segment_input_gradients(dz, w, rows, bounds):
    return np.array([active_input_gradient(dz[:, a:b], w, rows[a:b])
                     for a, b in itertools.pairwise(bounds)])


def active_update(rule, w, m, v, rows, dz, x):
    return update_at(rule, w, m, v, rows, dz.astype(float).T @ x.astype(float))


# ---- _sketches


def signs(rotated):
    return np.where(rotated > 0, 1, -1)


def pack(rotated, rows, blocks, size):
    """`blocks` with the signs of rotated[r] for neuron rows[r]; a block holds `size` neurons."""
    blocks = blocks.copy()
    for bits, j in zip(rotated > 0, rows, strict=True):
        for k, bit in enumerate(bits):
            # nibble k // 4 of neurons 0..15 is the low half of a byte, that of 16..31 the high half
            byte = k // 4 * (size // 2) + j % (size // 2)
            place = 1 << k % 4 + 4 * (j % size // (size // 2))
            others = blocks[j // size, byte] & (255 - place)
            blocks[j // size, byte] = others | (place if bit else 0)
    return blocks


def sketch_scores(queries, rotated, factors):
    return queries.astype(float) @ signs(rotated).T * factors


def sketch_error(queries, factors):
    """The error bound of the 8-bit table: half a step per group of four bits."""
    spread = np.abs(queries.astype(float)).reshape(len(queries), -1, 4).sum(axis=2)
    step = spread.max(axis=1) / 127.5
    return np.outer(step / 2 * spread.shape[1], np.abs(factors))


def unpack(blocks, s, size):
    """The bits of slot s, as `pack` has written them."""
    half = blocks[s // size, s % (size // 2) :: size // 2] >> (4 if s % size >= size // 2 else 0)
    return (half[:, None] >> np.arange(4) & 1).ravel()


def copy_slots(sources, targets, blocks, factors, out_blocks, out_factors, size):
    out_factors = out_factors.copy()
    for s, t in zip(sources, targets, strict=True):
        out_blocks = pack(np.where(unpack(blocks, s, size), 1, -1)[None], [t], out_blocks, size)
        out_factors[t] = factors[s]
    return out_blocks, out_factors


def rerank(ids, x, w, bias, k):
    scores = np.array([[x[i].astype(float) @ w[j].astype(float) + bias[j] for j in row]
                       for i, row in enumerate(ids)]).reshape(ids.shape)
    return top_k(scores, ids, k)


# ---- _losses: each returns (losses, gradient)


def per_row(row_loss):
    def loss(offsets, z, indptr, positions, *values, scale):
        z = z.astype(float)
        losses, gradient = np.zeros(len(offsets) - 1), np.zeros(len(z))
        for i in range(len(losses)):
            row, targets = slice(*offsets[i : i + 2]), slice(*indptr[i : i + 2])
            losses[i], dz = row_loss(z[row], positions[targets], *(v[targets] for v in values))
            gradient[row] = scale * dz
        return losses, gradient

    return loss


@per_row
def softmax_cross_entropy(z, targets):
    if not len(targets):
        return 0, np.zeros(len(z))
    e = np.exp(z - z.max())
    target = np.zeros(len(z))
    target[targets] = 1 / len(targets)
    return np.log(e.sum()) + z.max() - z[targets].mean(), e / e.sum() - target


def softmax_parts(offsets, z, indptr, positions):
    """Per row: the largest logit, the sum of exp relative to it, the sum at the targets."""
    parts = np.zeros((len(offsets) - 1, 3))
    for i in range(len(parts)):
        row = z[offsets[i]:offsets[i + 1]].astype(float)
        shift = row.max(initial=-np.inf)
        parts[i] = shift, np.exp(row - shift).sum(), row[positions[indptr[i]:indptr[i + 1]]].sum()
    return parts


def join_softmax_parts(left, right):
    left, right = left.astype(float), right.astype(float)
    shift = np.maximum(left[:, 0], right[:, 0])
    with np.errstate(invalid="ignore"):  # two parts of no logits
        sums = [np.where(part[:, 1] > 0, part[:, 1] * np.exp(part[:, 0] - shift), 0)
                for part in (left, right)]
    return np.stack([shift, sums[0] + sums[1], left[:, 2] + right[:, 2]], axis=1)


def softmax_of_parts(offsets, z, indptr, positions, n_parts, scale=1.0):
    """Losses and gradients of rows of n_parts parts each, from the logits."""
    starts = offsets[::n_parts]
    counts = np.repeat(offsets[:-1] - np.repeat(starts[:-1], n_parts), np.diff(indptr))
    return softmax_cross_entropy(starts, z, indptr[::n_parts], positions + counts, scale=scale)


@per_row
def binary_cross_entropy(z, targets):
    target = np.zeros(len(z))
    target[targets] = 1
    return np.logaddexp(0, z).sum() - z[targets].sum(), np.exp(-np.logaddexp(0, -z)) - target


@per_row
def squared_error(z, targets, values):
    y = np.zeros(len(z))
    y[targets] = values
    return ((z - y) ** 2).sum(), 2 * (z - y)


# ---- _select


def top_k(scores, ids, k):
    n, m = scores.shape
    ids = np.broadcast_to(np.arange(m) if ids is None else ids, (n, m))
    out_ids, out_scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    for i in range(n):
        best = sorted((-scores[i, c], ids[i, c]) for c in range(m) if ids[i, c] >= 0)[:k]
        out_ids[i, : len(best)] = [j for _, j in best]
        out_scores[i, : len(best)] = [-score for score, _ in best]
    return out_ids, out_scores


def random_at(seed, counter):
    """SplitMix64: the number at position `counter` of the stream `seed`."""
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def fill_at_random(taken, n_wanted, seed, n_neurons):
    counter = 0
    while len(taken) < n_wanted:
        j = (random_at(seed, counter) >> 32) * n_neurons >> 32
        counter += 1
        if j in taken and 2 * len(taken) < n_neurons:
            continue
        while j in taken:
            j = (j + 1) % n_neurons
        taken.add(j)


def union(labels, candidates, n_wanted, fill, seed, n_neurons):
    """The active set, ascending: the reference for batch_union and for one row of sample_union."""
    n_wanted = min(n_wanted, n_neurons)
    taken = {int(j) for j in labels}
    for j in candidates:
        if len(taken) < n_wanted and j >= 0:
            taken.add(int(j))
    if fill:
        fill_at_random(taken, n_wanted, seed, n_neurons)
    return sorted(taken)


def sample_union(label_indptr, labels, candidates, n_wanted, fill, seed, n_neurons):
    return [union(labels[label_indptr[i] : label_indptr[i + 1]], candidates[i], n_wanted, fill,
                  random_at(seed, i), n_neurons) for i in range(len(label_indptr) - 1)]


def compact(padded, indptr):
    return [j for i in range(len(padded)) for j in padded[i, : indptr[i + 1] - indptr[i]]]


# ---- text files and metrics


def parse_rows(text, has_header):
    """Dense (X, Y, stored) of XMC or zero-based svmlight text; stored: which entries are there."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    shape = None
    if has_header:
        n_rows, *shape = map(int, lines[0].split())
        lines = lines[1 : 1 + n_rows]
    else:
        lines = [line for line in (line.split("#")[0] for line in lines) if line.strip()]

    rows = []
    for line in lines:
        labels, _, features = line.partition(" ")
        if ":" in labels:
            labels, features = "", line
        pairs = [pair.split(":") for pair in features.split()]
        rows.append(([int(label) for label in labels.split(",") if label.strip()],
                     [(int(j), np.float32(float(v))) for j, v in pairs]))

    if shape is None:
        shape = (1 + max((j for _, pairs in rows for j, _ in pairs), default=-1),
                 1 + max((label for labels, _ in rows for label in labels), default=-1))
    X = np.zeros((len(rows), shape[0]), np.float32)
    Y = np.zeros((len(rows), shape[1]), np.float32)
    stored = np.zeros(X.shape, bool)
    for i, (labels, pairs) in enumerate(rows):
        Y[i, labels] = 1
        for j, value in pairs:
            X[i, j] = value
            stored[i, j] = True
    return X, Y, stored


def metric_label_sets(Y):
    """Set of labels of each row, from a dense indicator or class ids."""
    Y = np.asarray(Y)
    if Y.ndim == 1:
        return [{int(y)} for y in Y]
    return [set(np.flatnonzero(row).tolist()) for row in Y]


def metric_precision_at_k(Y, ids, k):
    return np.mean([len(true & set(row[:k].tolist())) / k
                    for true, row in zip(metric_label_sets(Y), ids, strict=True)])


def metric_recall_at_k(Y, ids, k):
    return np.mean([len(true & set(row[:k].tolist())) / len(true)
                    for true, row in zip(metric_label_sets(Y), ids, strict=True) if true])


def metric_ndcg_at_k(Y, ids, k):
    ratios = []
    for true, row in zip(metric_label_sets(Y), ids, strict=True):
        if true:
            gain = sum(1 / np.log2(1 + rank)
                       for rank, label in enumerate(row[:k], 1) if label in true)
            ideal = sum(1 / np.log2(1 + rank) for rank in range(1, min(k, len(true)) + 1))
            ratios.append(gain / ideal)
    return np.mean(ratios)


def metric_psp_at_k(Y, ids, k, p):
    got = best = 0.0
    for true, row in zip(metric_label_sets(Y), ids, strict=True):
        got += sum(1 / p[label] for label in row[:k] if label in true)
        best += sum(sorted((1 / p[label] for label in true), reverse=True)[:k])
    return got / best


def metric_neighbour_recall(ids, true_ids):
    ratios = []
    for row, true in zip(ids, true_ids, strict=True):
        true = set(true.tolist()) - {-1}
        if true:
            ratios.append(len(true & set(row.tolist())) / len(true))
    return np.mean(ratios)


# ---- rows of a CSR matrix


def locate(indptr, indices, label_indptr, labels):
    rows = [list(indices[indptr[i]:indptr[i + 1]]) for i in range(len(indptr) - 1)]
    return [rows[i].index(label) if label in rows[i] else -1
            for i in range(len(rows)) for label in labels[label_indptr[i]:label_indptr[i + 1]]]


def take_rows(indptr, values, rows):
    return [value for i in rows for value in values[indptr[i]:indptr[i + 1]]]


# ---- _active


def best_entries(indptr, indices, data, n_best, positive):
    rows = []
    for i in range(len(indptr) - 1):
        row = slice(indptr[i], indptr[i + 1])
        entries = [(value, j) for value, j in zip(data[row], indices[row],
                                                  strict=True) if value > 0 or not positive]
        best = sorted(entries, key=lambda entry: (-entry[0], entry[1]))[:n_best]
        rows.append(sorted((j, value) for value, j in best))
    out_indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    flat = [entry for row in rows for entry in row]
    indices = np.array([j for j, _ in flat], np.int32)
    return out_indptr, indices, np.array([value for _, value in flat], np.float32)


def drop(a, seed, rate):
    draws = np.array([random_at(seed, k) >> 11 for k in range(a.size)]).reshape(a.shape) / 2**53
    return np.where(draws < rate, 0, a / (1 - rate))


# ---- _quantized


def stored(rows, scales):
    """The values of rows in float32, bfloat16 (uint16) or int8."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32).astype(float)
    return rows.astype(float) * (1 if scales is None else scales.astype(float)[:, None])


def quantize_int8(w):
    largest = np.abs(w).max(axis=1, initial=0)
    scales = largest / np.float32(127)
    scales[scales < 1.2e-38] = 0
    safe = np.where(scales > 0, largest, 1).astype(float)[:, None]
    rows = np.where(scales[:, None] > 0, np.rint(w.astype(float) * 127 / safe), 0)
    return rows.astype(int), scales


def quantize_input(x):
    """Steps and zero, and the numbers in 0 .. 255, of one input."""
    x = x.astype(np.float32)
    largest = np.abs(x).max(initial=0)
    zero, steps = (128, np.float32(127)) if (x < 0).any() else (0, np.float32(255))
    if not 1e-30 <= largest <= 1e30:
        return 0.0, zero, np.full(len(x), zero)
    return largest / steps, zero, np.rint(x * (steps / largest)).astype(int) + zero


def int8_outputs(q, scales, bias, x):
    out = np.empty((len(x), len(q)), np.float32)
    for i, row in enumerate(x):
        step, zero, u = quantize_input(row)
        dots = (q.astype(int) @ (u - zero)).astype(np.float32)
        out[i] = dots * (np.float32(step) * scales) + bias
    return out


def opponents(labels, candidates, is_used, n_labels):
    """The samples of each label, of _one_vs_rest: i for its rows, then ~i by rank."""
    n = len(labels)
    out = [[i for i in range(n) if is_used[i] and j in labels[i]] for j in range(n_labels)]
    for begin in range(0, candidates.shape[1], 16):
        for i in range(n):
            for j in candidates[i, begin:begin + 16]:
                if j >= 0 and is_used[i] and j not in labels[i]:
                    out[j].append(~i)
    return out


# ---- _activations


def activation(name, x):
    from scipy.special import erf, expit

    functions = {None: lambda: x, "relu": lambda: np.maximum(x, 0), "tanh": lambda: np.tanh(x),
                 "sigmoid": lambda: expit(x), "silu": lambda: x * expit(x),
                 "gelu": lambda: x * (1 + erf(x / math.sqrt(2))) / 2,
                 "gelu_tanh": lambda: x * expit(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))}
    return functions[name]()


def multinomial(w, bias, x, classes, costs):
    """The objective of _logistic.fit: x dense."""
    z = x @ w + bias
    losses = log_sum_exp(z) - z[np.arange(len(z)), classes]
    return ((w * w).sum() + (bias * bias).sum()) / 2 + (costs * losses).sum()


def squared_hinge(w, bias, x, y, costs):
    """The objective of _one_vs_rest.fit for one label: x dense, y of 1 and -1."""
    slack = np.maximum(0, 1 - y * (x @ w + bias))
    return (w @ w + bias * bias) / 2 + (costs * slack * slack).sum()


def label_vectors(x, y, random, relu, shared, solved, ridge, weight, hidden_norm, label_norm):
    """Weights of features and of labels from dense x and y, as _label_vectors makes them."""
    means = (y @ random) / np.maximum(y.sum(axis=1, keepdims=True), 1)
    if solved:
        rows, total = weight[:, None], weight.sum()
        means = means - (rows * means).sum(axis=0) / total
        penalty = ridge * (rows * x * x).sum() / total
        features = np.linalg.solve(x.T @ (rows * x) + penalty * np.eye(x.shape[1]),
                                   x.T @ (rows * means))
    else:
        if shared:
            lengths = np.sqrt((x * x).sum(axis=1, keepdims=True))
            means += np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0) @ random
        features = (x.T @ (weight[:, None] * means)) / np.maximum((x != 0).sum(axis=0), 1)[:, None]
    h = np.maximum(x @ features, 0) if relu else x @ features
    norms = np.linalg.norm(h, axis=1, keepdims=True)
    directions = np.divide(h, norms, out=np.zeros_like(h), where=norms > 0)
    labels = y.T @ (weight[:, None] * directions)
    lengths = np.linalg.norm(labels, axis=1, keepdims=True)
    labels = label_norm * np.divide(labels, lengths, out=np.zeros_like(labels), where=lengths > 0)
    return features * hidden_norm / norms.mean(), labels


# ---- _estimates


def log_sum_exp(z):
    z = z.astype(float)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)


def given_scores(ids, x, w, bias):
    scores = x.astype(float) @ w.astype(float).T + bias
    return np.where(ids >= 0, np.take_along_axis(scores, np.maximum(ids, 0), 1), -np.inf)


# ---- _text


def murmur(key):
    """MurmurHash3 of 32 bits with the seed 0."""
    def rotated(x, n):
        return (x << n | x >> 32 - n) & 0xffffffff

    def mixed(k):
        return rotated(k * 0xcc9e2d51 & 0xffffffff, 15) * 0x1b873593 & 0xffffffff

    h, n = 0, len(key) // 4 * 4
    for i in range(0, n, 4):
        h = (rotated(h ^ mixed(int.from_bytes(key[i:i + 4], "little")), 13) * 5
             + 0xe6546b64) & 0xffffffff
    h ^= mixed(int.from_bytes(key[n:], "little")) ^ len(key)
    for shift, factor in ((16, 0x85ebca6b), (13, 0xc2b2ae35), (16, 1)):
        h = (h ^ h >> shift) * factor & 0xffffffff
    return h


def ngrams(text, n_min, n_max, lowercase=True):
    """Runs of n_min to n_max words, words first."""
    words = re.findall(r"\w\w+", text.lower() if lowercase else text)
    return [" ".join(words[i:i + n]) for n in range(n_min, n_max + 1)
            for i in range(len(words) - n + 1)]


def text_row(text, id_of, idf, n_min, n_max, lowercase, sublinear, normalize):
    """(ids, weights) of a text; id_of gives the id of a run of words, or None."""
    ids = [id_of(run) for run in ngrams(text, n_min, n_max, lowercase)]
    counts = {j: ids.count(j) for j in ids if j is not None}
    weights = {j: (1 + math.log(c) if sublinear else c) * idf[j] for j, c in counts.items()}
    norm = math.sqrt(sum(v * v for v in weights.values())) if normalize and weights else 1
    return sorted(weights), [weights[j] / norm for j in sorted(weights)]


# ---- _calibration


def ranked(scores, knots, location, spread, temperature, slopes, rank, rank_steps, best, rest,
           first_at, first_shift, classes, n_labels):
    """Probabilities of the ranked labels, (n, n_ranked), and of the rest of each row, (n,)."""
    n_ranked, found = scores.shape[1], np.isfinite(scores)
    s = np.where(found, scores, 0).astype(float)
    gaps = np.where(found, np.maximum(s[:, :1] - s, 0), 0)
    head = np.where(found, s[:, :1] - s, 0)[:, :6]
    crowd = np.where(found, np.exp(s - s[:, :1]), 0).sum(axis=1)
    f = np.stack([s[:, 0], head[:, 1] if n_ranked > 1 else np.zeros(len(s)),
                  head[:, 1:].sum(axis=1) / np.maximum(found[:, 1:6].sum(axis=1), 1),
                  np.log(np.maximum(crowd, 1))], axis=1)
    u = np.clip((f - location) / spread, -3, 3)
    u = np.concatenate([u, *(np.maximum(u - bend, 0) for bend in (-1, 0, 1))], axis=1)

    def linear(w):
        return w[0] + u @ w[1:]

    ends = np.append(knots[1:], np.inf)
    phi = sum(np.exp(slope) * np.clip(gaps - start, 0, end - start)
              for slope, start, end in zip(slopes, knots, ends, strict=True))
    r = np.arange(1, n_ranked + 1)
    costs = np.stack([np.log(r), *(r > step for step in rank_steps)], axis=1) @ rank
    g = -phi * np.exp(np.clip(linear(temperature), -50, 50))[:, None] - costs
    g = np.where(found, g, -np.inf)
    others, n_others = linear(rest), max(1, n_labels - n_ranked)
    if classes:
        others = np.full(len(s), -np.inf) if n_ranked == n_labels else others
        together = np.concatenate([g, others[:, None]], axis=1)
        top = together.max(axis=1, keepdims=True)
        e = np.exp(together - np.where(np.isfinite(top), top, 0))
        e /= np.maximum(e.sum(axis=1, keepdims=True), 1e-300)
        p, others = np.maximum(e[:, :-1], e[:, -1:] / n_others), e[:, -1]
        total = np.maximum(p.sum(axis=1) + others, 1e-30)
        p, others = p / total[:, None], others / total
    else:
        z = g + linear(best)[:, None]
        grid = np.maximum.accumulate(first_at + first_shift)
        z[:, 0] = (np.interp(z[:, 0], first_at, grid) + np.minimum(z[:, 0] - first_at[0], 0)
                   + np.maximum(z[:, 0] - first_at[-1], 0))
        p = 0.5 * (1 + np.tanh(0.5 * z))
        others = np.exp(np.minimum(others, np.log(n_labels))) * (n_ranked < n_labels)
        for row in p:
            for _ in range(8):
                for j in range(min(7, n_ranked) - 1):
                    if row[j] < row[j + 1]:
                        row[j] = row[j + 1] = (row[j] + row[j + 1]) / 2
        p = np.maximum(p, others[:, None] / n_others)
    return np.where(found, np.minimum.accumulate(p, axis=1), 0), others


# ---- _coded_search


def unpacked_codes(blocks):
    n_blocks, n_groups, _ = blocks.shape
    four = blocks.reshape(n_blocks, n_groups, 16, 4)
    eight = np.concatenate([four & 15, four >> 4], axis=3)
    return eight.transpose(0, 2, 1, 3).reshape(16 * n_blocks, 8 * n_groups).astype(int)


def coded_scores(blocks, scales, offsets, x, factors):
    sums = (2 * unpacked_codes(blocks) - 15) @ x.astype(int).T
    return (sums * scales.astype(float)[:, None] * factors + offsets[:, None]).T


def rotate_halves(v, signs, width):
    order = signs.shape[1]
    H = np.ones((1, 1))
    while len(H) < order:
        H = np.block([[H, H], [H, -H]])
    x = np.zeros((len(v), width))
    x[:, :v.shape[1]] = v
    for r in range(2 if order == width else 4):
        first = width - order if r % 2 else 0
        part = slice(first, first + order)
        x[:, part] = (x[:, part] * signs[r]) @ H / np.sqrt(order)
    return x


def calibration_loss(scores, hit, n_missed, weight, knots, slopes, costs, log_t, best, rest,
                     classes, has_tail):
    """The weighted negative log-likelihood of the map, in the terms of _calibration.losses."""
    found = np.isfinite(scores)
    s = np.where(found, scores, 0).astype(float)
    gaps = np.where(found, s[:, :1] - s, 0)
    ends = np.append(knots[1:], np.inf)
    phi = sum(slope * np.clip(gaps - start, 0, end - start)
              for slope, start, end in zip(slopes, knots, ends, strict=True))
    g = np.where(found, -phi * np.exp(log_t)[:, None] - costs, -np.inf)
    if classes:
        terms = np.exp(np.concatenate([g, rest[:, None]], axis=1)[:, :None if has_tail else -1])
        is_missed = (n_missed > 0) & has_tail
        own = np.where(is_missed, rest, np.where(hit & found, g, 0).sum(axis=1))
        total = terms.sum(axis=1)
        losses = np.where(total > 0, np.log(np.where(total > 0, total, 1)) - own, 0)
    else:
        z = np.where(found, g + best[:, None], -np.inf)
        losses = (np.logaddexp(0, z) - np.where(hit & found, z, 0)).sum(axis=1)
        losses = losses + has_tail * (np.exp(rest) - n_missed * rest)
    return float(losses @ weight)


def session_postings(sessions, n_items):
    """Per item, {session: (its last place, strength)} of the latest 500 sessions with it."""
    n = len(sessions)
    found = []
    for item in range(n_items):
        with_item = [s for s, row in enumerate(sessions) if item in row]
        idf = np.log(1 + n / max(len(with_item), 1))
        found.append({s: (max(p for p, other in enumerate(sessions[s]) if other == item),
                          idf * np.exp((s - n) / (0.5 * n))) for s in with_item[-500:]})
    return found


def session_candidates(query, sessions, postings, age_weights, weights, n_neighbors, n_best,
                       further):
    """Candidates, their counts (., 14), ages in the query or -1, and how many have votes."""
    ages = {}
    for age, item in enumerate(query[::-1][:len(age_weights)]):
        ages.setdefault(item, age)
    similarity, shared = {}, {}
    for item, age in ages.items():
        for s, (place, strength) in postings[item].items():
            similarity[s] = similarity.get(s, 0) + age_weights[age] * strength
            shared.setdefault(s, (place, age))  # that of the latest item

    nearest = sorted(similarity, key=lambda s: (-similarity[s], -s))[:n_neighbors]
    counts = {}
    for s in nearest:
        place, age = shared[s]
        for p, item in enumerate(sessions[s]):
            column = 3 + min(max(p - place, -3), 3) + 7 * (age > 0)
            counts.setdefault(item, np.zeros(14))[column] += similarity[s]
    total = sum(similarity[s] for s in nearest)
    best = sorted(counts, key=lambda item: (-counts[item] @ weights, item))[:n_best]
    others = list(dict.fromkeys(item for item in further if item >= 0 and item not in counts))
    ids = best + others
    return (ids, np.array([counts.get(item, np.zeros(14)) / (total or 1) for item in ids]
                          ).reshape(-1, 14),
            np.array([min(ages.get(item, -1), 5) for item in ids]), len(counts))


def session_scores(counts, outputs, ages, trends, parameters):
    """Scores of the candidates of one query."""
    a, b, seen_a, seen_b, log_floor, _, c = parameters[:7]
    shifts, weights, is_seen = parameters[7:13], np.exp(parameters[13:]), ages >= 0
    z, v = outputs - outputs.max(initial=-np.inf), np.log(counts @ weights + np.exp(log_floor))
    return ((a + seen_a * is_seen) * z + (b + seen_b * is_seen) * v + c * trends
            + np.where(is_seen, shifts[np.maximum(ages, 0)], 0))
