"""
Rebuild policies, schedules and sampling compared
=================================================

A network with two sparse hidden layers learns handwritten digits. Three settings are varied, one at
a time: when the sketches of the hidden layers are rebuilt, how the learning rate changes, and
which neurons are active. The curves are the training loss of each epoch; the legend gives the
accuracy on held-out digits.
"""

# %%
# The network has 64 inputs, two hidden layers of 400 neurons of which 40 are active for each digit,
# and 10 outputs. ``plan="gather"`` keeps the layers sparse: at this size the cost formula would
# compute all neurons.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import sparselsh as sl
from sparselsh import rebuild, schedules

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(X))
train, test = order[:1000], order[1000:]


def run(lr=5e-3, schedule="linear", **options):
    """Loss of each epoch, and the accuracy on other digits."""
    options = {
        "density": 0.1,
        "activation": "relu",
        "plan": "gather",
    } | options
    if options.get("policy", "sketches") == "sketches":
        options["oversample"] = 3
    net = sl.Network(
        [
            sl.LSHLinear(64, 400, **options),
            sl.LSHLinear(400, 400, **options),
            sl.Linear(400, 10),
        ],
        random_state=0,
    )
    optimizer = sl.Adam(lr, schedule=schedule)
    net.fit(
        X[train], y[train], optimizer=optimizer,
        epochs=5, batch_size=64, verbose=False,
    )
    losses = [entry["loss"] for entry in net.history]
    return losses, (net.predict(X[test]) == y[test]).mean()


# %%
# Each setting is one training of some tenths of a second.
panels = {
    "when sketches are rebuilt": {
        "at once": {"rebuild": rebuild.AtOnce()},
        "exponential": {"rebuild": rebuild.Exponential(8, 0.15)},
        "every 20 steps": {"rebuild": rebuild.Every(20)},
        "on drift": {"rebuild": rebuild.OnDrift(0.1, 8)},
        "frozen after 1 epoch": {"rebuild": rebuild.Frozen(1)},
        "never again": {"rebuild": rebuild.Frozen(0)},
    },
    "learning rate": {
        "constant": {"schedule": None},
        "linear": {"schedule": "linear"},
        "cosine": {"schedule": "cosine"},
        "step": {"schedule": schedules.Step()},
        "one cycle": {"schedule": schedules.OneCycle()},
        "warm-up, cosine": {"schedule": schedules.WarmUp(0.1, "cosine")},
    },
    "which neurons are active": {
        "sketches": {"policy": "sketches"},
        "top of tables": {"policy": "top"},
        "score": {"policy": "score"},
        "vanilla": {"policy": "vanilla"},
        "top, 4 probes": {"policy": "top", "n_probes": 4},
        "every neuron": {"density": 1},
    },
}

fig, axes = plt.subplots(
    1, 3, figsize=(12, 4), sharey=True, layout="constrained"
)
for ax, (title, settings) in zip(axes, panels.items(), strict=True):
    for name, options in settings.items():
        losses, accuracy = run(**options)
        epochs = range(1, len(losses) + 1)
        ax.plot(epochs, losses, label=f"{name}: {accuracy:.1%}")
    ax.set(title=title, xlabel="epoch", yscale="log")
    ax.legend(
        fontsize=8, title="accuracy, held out", title_fontsize=8
    )
axes[0].set_ylabel("training loss")
plt.show()

# %%
# The profile shows what a step of this network computes, beside that of a dense one. ``print``
# shows it as a table.
options = {"density": 0.1, "activation": "relu", "plan": "gather"}
net = sl.Network(
    [
        sl.LSHLinear(64, 400, **options),
        sl.LSHLinear(400, 400, **options),
        sl.Linear(400, 10),
    ],
    random_state=0,
)
profile = net.profile(X[train], y[train], batch_size=64)
profile.plot()
plt.show()
