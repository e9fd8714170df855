"""
How LSH finds neurons
=====================

A wide layer has tens of thousands of neurons, and few of them matter for one input: those whose weights point where
the input points. Locality-sensitive hashing finds them without looking at the others. This page shows how, from one
hyperplane to a layer, in the order of :doc:`/algorithms`.
"""

# %%
# A hyperplane is a hash bit
# --------------------------
#
# Draw a random direction ``g``. A vector gets the bit 1 if it lies on the side to which ``g`` points. Two vectors
# at the angle ``a`` are separated by the plane with probability ``a / π``, whatever their lengths: so their bits
# agree with probability ``1 - a / π``.
#
# *K* bits cut space into up to 2\ :sup:`K` cells, the **buckets** of a table. The input below looks at its own
# bucket only.

import matplotlib.pyplot as plt
import numpy as np

import sparselsh as sl
from sparselsh.index.transforms import Transform

INPUT, FOUND, OTHER = "#c2410c", "#0f766e", "#b8c0cc"

rng = np.random.default_rng(7)
neurons = rng.standard_normal((400, 2)).astype(np.float32)
query = np.array([[1.0, 0.55]], np.float32)


def draw(ax, bits, seed):
    """Neurons in the bucket of the query in one table; the planes, and the neurons found."""
    family = sl.SimHash(bits=bits, tables=1).fit(2, seed)
    found = (family.hash(neurons) == family.hash(query))[:, 0]
    for a, b in family._projections.planes.T:
        ax.axline((0, 0), (-b, a), color="0.35", lw=0.8)
    ax.scatter(*neurons[~found].T, s=9, color=OTHER)
    ax.scatter(*neurons[found].T, s=12, color=FOUND)
    ax.annotate("", query[0] * 2.2, (0, 0), arrowprops={"arrowstyle": "-|>", "color": INPUT, "lw": 2})
    ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    return found


fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for ax, bits, seed in zip(axes, (1, 3, 5), (3, 2, 5), strict=True):
    found = draw(ax, bits, seed)
    ax.set_title(f"K = {bits}: {found.mean():.0%} of the neurons", fontsize=10)
plt.show()

# %%
# The arrow is the input, teal dots share its bucket. More bits make the bucket smaller, and more likely to cut
# between the input and a good neuron.
#
# Several tables mend that
# ------------------------
#
# *L* tables with other hyperplanes are asked together. A neuron that is near shares a bucket in most of them; one
# that is not shares one now and then. **In how many tables** a neuron was found therefore ranks neurons by angle.

family = sl.SimHash(bits=4, tables=16).fit(2, 0)
counts = (family.hash(neurons) == family.hash(query)).sum(axis=1)

lengths = np.linalg.norm(neurons, axis=1) * np.linalg.norm(query)
angles = np.degrees(np.arccos(neurons @ query[0] / lengths))
grid = np.linspace(0, 180, 200)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1, 1.5))
dots = left.scatter(*neurons.T, c=counts, s=14, cmap="viridis")
left.annotate("", query[0] * 2.2, (0, 0), arrowprops={"arrowstyle": "-|>", "color": INPUT, "lw": 2})
left.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
fig.colorbar(dots, ax=left, label="tables shared")
right.scatter(angles, counts, s=9, color=FOUND, label="a neuron")
right.plot(grid, 16 * family.collision_probability(np.cos(np.radians(grid))), color=INPUT,
           label="expected: $L (1 - a / \\pi)^K$")
right.set(xlabel="angle to the input, degrees", ylabel="tables shared, of 16")
right.legend(frameon=False)
plt.show()

# %%
# K and L shape the curve
# -----------------------
#
# The probability of sharing at least one bucket, ``1 - (1 - p**K)**L`` with ``p = 1 - a / π``, is an S whose step
# *K* moves to smaller angles and *L* to larger ones. :func:`sparselsh.choose_bits_and_tables` solves for both.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
cosines = np.cos(np.radians(grid))
for ax, settings, title in ((axes[0], [(2, 8), (6, 8), (10, 8), (14, 8)], "more bits: fewer neurons"),
                            (axes[1], [(10, 2), (10, 8), (10, 32), (10, 128)], "more tables: fewer missed")):
    for i, (bits, tables) in enumerate(settings):
        p = sl.SimHash(bits=bits, tables=tables).collision_probability(cosines)
        ax.plot(grid, 1 - (1 - p) ** tables, color=plt.get_cmap("viridis")(i / 4), label=f"K = {bits}, L = {tables}")
    ax.set(title=title, xlabel="angle, degrees", xlim=(0, 120))
    ax.legend(frameon=False, fontsize=9)
axes[0].set_ylabel("probability of being found")
plt.show()

# %%
# From angles to inner products
# -----------------------------
#
# A layer wants the neurons with the largest *inner products*, and in a trained layer these are no neighbours by
# angle: neurons have a large mean in common, and so have the inputs. Both are taken out in ways that keep the
# ranking. *Centring* subtracts the mean neuron ``c``: ``<w - c, x> = <w, x> - <c, x>``, and the last term is the
# same for all. *Scaling* moves length between neuron and input: ``<A w, B x> = <w, x>`` for ``A B = 1``. The five
# best neurons of each input move from angles that a hash hardly tells apart to ones that it does.

n, d = 4000, 64
factors = rng.standard_normal((30, d)) / np.sqrt(30)
H = np.maximum(rng.standard_normal((300, 30)) @ factors + 0.5, 0).astype(np.float32)  # like the outputs of a ReLU layer
W = (rng.standard_normal((n, d)) + 3 * rng.standard_normal(d)).astype(np.float32)  # like trained weights
best = np.argsort(-(H @ W.T), axis=1)[:, :5]


def degrees(queries, rows):
    """Angles of each query to its five best neurons, and to five others."""
    def angle(ids):
        v = rows[ids]
        lengths = np.linalg.norm(v, axis=2) * np.linalg.norm(queries, axis=1)[:, None]
        return np.degrees(np.arccos(np.clip(np.einsum("nd,nkd->nk", queries, v) / lengths, -1, 1))).ravel()

    return angle(best), angle(rng.integers(0, n, best.shape))


fig, axes = plt.subplots(3, 1, figsize=(8, 5), layout="constrained", sharex=True)
moment = np.concatenate([H, np.ones((len(H), 1), np.float32)], axis=1)
moment = moment.T @ moment / len(H)
steps = {"as they are": (False, 0), "centred": (True, 0), "centred and scaled": (True, 0.5)}
for ax, (name, (center, scaling)) in zip(axes, steps.items(), strict=True):
    transform = Transform(center, scaling).fit(W, np.zeros(n, np.float32), moment)
    near, far = degrees(transform.queries(H, 1), transform.neurons(W, np.zeros(n, np.float32), 1))
    for values, color, label in ((far, OTHER, "other neurons"), (near, FOUND, "the five best")):
        ax.hist(values, bins=np.arange(0, 181, 2), density=True, color=color, alpha=0.85, label=label)
    ax.set_yticks([])
    title = f"{name}: the best at {np.median(near):.0f}°, others at {np.median(far):.0f}°"
    ax.set_title(title, fontsize=10, loc="left")
axes[0].legend(frameon=False)
axes[-1].set_xlabel("angle between input and neuron, degrees")
plt.show()

# %%
# What is found
# -------------
#
# Tables propose the active sets of training. For answers, sketches rank: signs of a few hundred rotated coordinates
# of each neuron, against the real-valued input. The best of that ranking get their exact inner products.

index = sl.LSHIndex(recall=0.98, plan="sketches", random_state=0).fit(W, queries=H[:150])
few = [5, 10, 20, 40, 80, 160]
recalls = [sl.metrics.neighbour_recall(index.search(H[150:], k=5, n_candidates=m)[0], best[150:]) for m in few]

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(np.array(few) / n, recalls, "o-", color=FOUND)
ax.axhline(0.98, color="0.6", lw=0.8, ls="--")
ax.set(xscale="log", xlabel="share of the neurons whose inner product is computed", ylabel="of the five best, found")
ax.xaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
plt.show()

# %%
# The dashed line is the recall that was asked for; the index chose its number of candidates by its queries:

print(f"{index.report()['n_candidates']} candidates of {n} neurons")
