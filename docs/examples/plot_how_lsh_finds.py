"""
How LSH finds neurons
=====================

A wide layer has tens of thousands of neurons, and few of them matter for one input: those whose
weights point in the direction of the input. Locality-sensitive hashing finds them without computing
the others. This page shows how, from one hyperplane to a layer, in the order of :doc:`/algorithms`.
"""

# %%
# A hyperplane is a hash bit
# --------------------------
#
# Draw a random direction ``g``. A vector gets the bit 1 if it lies on the side to which ``g``
# points. A plane separates two vectors at the angle ``a`` with probability ``a / π``, whatever
# their lengths, so their bits agree with probability ``1 - a / π``.
#
# *K* bits divide space into up to 2\ :sup:`K` cells, the **buckets** of a table. Only the neurons
# in the bucket of the input are found.

import matplotlib.pyplot as plt
import numpy as np

import sparselsh as sl

INPUT, FOUND, OTHER = "#c2410c", "#0f766e", "#b8c0cc"

rng = np.random.default_rng(7)
neurons = rng.standard_normal((400, 2)).astype(np.float32)
query = np.array([[1.0, 0.55]], np.float32)


def draw_plane(ax):
    """The axes of a picture with the input as an arrow."""
    arrow = {"arrowstyle": "-|>", "color": INPUT, "lw": 2}
    ax.annotate("", query[0] * 2.2, (0, 0), arrowprops=arrow)
    ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    ax.set(xticks=[], yticks=[])


fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
settings = zip(axes, (1, 3, 5), (56, 86, 179), strict=True)
for ax, bits, seed in settings:
    g = np.random.default_rng(seed).standard_normal((2, bits))
    same_bits = (neurons @ g > 0) == (query @ g > 0)
    found = same_bits.all(axis=1)
    for a, b in g.T:
        ax.axline((0, 0), (-b, a), color="0.35", lw=0.8)
    ax.scatter(*neurons[~found].T, s=9, color=OTHER)
    ax.scatter(*neurons[found].T, s=12, color=FOUND)
    ax.set_title(f"K = {bits}: {found.mean():.0%} of the neurons")
    draw_plane(ax)
plt.show()

# %%
# The arrow is the input, the lines are the hyperplanes; teal dots are in the same bucket as the
# input. With more bits the bucket is smaller, and a plane is more likely to separate the input from
# a good neuron.
#
# Several tables
# --------------
#
# *L* tables with other hyperplanes make up for that. A near neuron shares the bucket in most of
# them, a distant one in few. The **number of tables** in which a neuron is found therefore ranks
# neurons by angle.

family = sl.SimHash(bits=4, tables=16).fit(2, 0)
counts = (family.hash(neurons) == family.hash(query)).sum(axis=1)

lengths = np.linalg.norm(neurons, axis=1) * np.linalg.norm(query)
angles = np.degrees(np.arccos(neurons @ query[0] / lengths))
grid = np.linspace(0, 180, 200)
cosines = np.cos(np.radians(grid))
expected = 16 * family.collision_probability(cosines)

fig, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1, 1.5)
)
dots = left.scatter(*neurons.T, c=counts, s=14, cmap="viridis")
draw_plane(left)
fig.colorbar(dots, ax=left, label="tables shared")
right.scatter(angles, counts, s=9, color=FOUND, label="one neuron")
right.plot(
    grid, expected, color=INPUT, label="expected: $L (1 - a / \\pi)^K$"
)
right.set_xlabel("angle to the input, degrees")
right.set_ylabel("tables shared, of 16")
right.legend(frameon=False)
plt.show()

# %%
# K and L shape the curve
# -----------------------
#
# The probability of sharing at least one bucket is ``1 - (1 - p**K)**L`` with ``p = 1 - a / π``.
# As a function of the angle it is S-shaped; *K* moves its step to smaller angles, *L* to larger
# ones. :func:`sparselsh.choose_bits_and_tables` solves for both.

panels = {
    "more bits: fewer neurons": [(2, 8), (6, 8), (10, 8), (14, 8)],
    "more tables: fewer missed": [(10, 2), (10, 8), (10, 32), (10, 128)],
}
fig, axes = plt.subplots(
    1, 2, figsize=(9, 3.4), layout="constrained", sharey=True
)
for ax, (title, settings) in zip(axes, panels.items(), strict=True):
    for i, (bits, tables) in enumerate(settings):
        family = sl.SimHash(bits=bits, tables=tables)
        p = family.collision_probability(cosines)
        color = plt.get_cmap("viridis")(i / 4)
        label = f"K = {bits}, L = {tables}"
        ax.plot(grid, 1 - (1 - p) ** tables, color=color, label=label)
    ax.set(title=title, xlabel="angle, degrees", xlim=(0, 120))
    ax.legend(frameon=False, fontsize=9)
axes[0].set_ylabel("probability of being found")
plt.show()

# %%
# From angles to inner products
# -----------------------------
#
# A layer needs the neurons with the largest *inner products*. In a trained layer these are not near
# by angle, because all neurons have a large mean in common, and so have the inputs. Two transforms
# remove both and keep the ranking. *Centring* subtracts the mean neuron ``c``: ``<w - c, x> = <w,
# x> - <c, x>``, and the last term is the same for all neurons. *Scaling* moves length between
# neuron and input: ``<A w, B x> = <w, x>`` for ``A B = 1``, here with powers of the second moment
# of the inputs.
#
# The data imitate the outputs of a ReLU layer and trained weights. The five best neurons of each
# input move from angles that a hash can hardly distinguish to angles that it can.

n, d = 4000, 64
factors = rng.standard_normal((30, d)) / np.sqrt(30)
H = rng.standard_normal((300, 30)) @ factors + 0.5
H = np.maximum(H, 0).astype(np.float32)
W = rng.standard_normal((n, d)) + 3 * rng.standard_normal(d)
W = W.astype(np.float32)
best = np.argsort(-(H @ W.T), axis=1)[:, :5]
others = rng.integers(0, n, best.shape)

values, vectors = np.linalg.eigh(H.T @ H / len(H))
values = values + 0.01 * values.mean()
A = (vectors * values**0.25) @ vectors.T
B = (vectors * values**-0.25) @ vectors.T
centred = W - W.mean(axis=0)
spaces = {
    "as they are": (H, W),
    "centred": (H, centred),
    "centred and scaled": (H @ B, centred @ A),
}


def degrees(queries, rows, ids):
    """Angles of each query to some rows."""
    v = rows[ids]
    products = np.einsum("nd,nkd->nk", queries, v)
    lengths = np.linalg.norm(queries, axis=1)[:, None]
    cosines = products / (lengths * np.linalg.norm(v, axis=2))
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).ravel()


fig, axes = plt.subplots(
    3, 1, figsize=(8, 5), layout="constrained", sharex=True
)
bins = np.arange(0, 181, 2)
for ax, (name, (queries, rows)) in zip(
    axes, spaces.items(), strict=True
):
    near = degrees(queries, rows, best)
    far = degrees(queries, rows, others)
    options = {"bins": bins, "density": True, "alpha": 0.85}
    ax.hist(far, color=OTHER, label="other neurons", **options)
    ax.hist(near, color=FOUND, label="the five best", **options)
    ax.set_yticks([])
    medians = f"{np.median(near):.0f}°, others at {np.median(far):.0f}°"
    title = f"{name}: the best at {medians}"
    ax.set_title(title, fontsize=10, loc="left")
axes[0].legend(frameon=False)
axes[-1].set_xlabel("angle between input and neuron, degrees")
plt.show()

# %%
# What is found
# -------------
#
# Tables give the active sets of training. For inference, sketches rank: the signs of a few hundred
# rotated coordinates of each neuron, against the real-valued input. The best of that ranking get
# their exact inner products.

index = sl.LSHIndex(recall=0.98, plan="sketches", random_state=0)
index.fit(W, queries=H[:150])

few = [5, 10, 20, 40, 80, 160]
recalls = []
for n_candidates in few:
    ids, _ = index.search(H[150:], k=5, n_candidates=n_candidates)
    recalls.append(sl.metrics.neighbour_recall(ids, best[150:]))

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(np.array(few) / n, recalls, "o-", color=FOUND)
ax.axhline(0.98, color="0.6", lw=0.8, ls="--")
ax.set(xscale="log", ylabel="fraction of the five best found")
ax.set_xlabel("fraction of the inner products computed")
ax.xaxis.set_major_formatter(lambda fraction, _: f"{fraction:.1%}")
plt.show()

# %%
# The dashed line is the recall that was asked for. Without a number of candidates, a search
# computes every neuron that may be among the best by the error of its sketch, on average:

print(f"{index.report()['n_computed']:.0f} of {n} neurons")
