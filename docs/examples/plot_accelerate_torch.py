"""
Serve a PyTorch network faster
==============================

A network with a wide output layer spends most of its time on scores that are not used: of 50,000
classes only the five best are shown. ``sl.from_torch`` converts a trained network to one that
computes only the neurons that an index finds, and reports what that changes.
"""

# %%
# A network trained with PyTorch
# ------------------------------
# Each class has a random direction; an input is the direction of its class plus noise. The wide
# layer is trained with a sampled softmax over the classes of the batch.
import time

import numpy as np
import torch

import sparselsh as sl

n_classes, n_in = 50_000, 64
torch.manual_seed(0)
torch.set_num_threads(1)
directions = torch.randn(n_classes, n_in)
directions = torch.nn.functional.normalize(directions)


def draw(n):
    labels = torch.randint(0, n_classes, (n,))
    noise = 0.07 * torch.randn(n, n_in)
    return directions[labels] + noise, labels


model = torch.nn.Sequential(
    torch.nn.Linear(n_in, 128),
    torch.nn.ReLU(),
    torch.nn.Linear(128, n_classes, bias=False),
)
with torch.no_grad():
    model[2].weight.mul_(0.1)

rows = torch.nn.Embedding.from_pretrained(
    model[2].weight.detach(), freeze=False, sparse=True
)
optimizers = [
    torch.optim.Adam(model[0].parameters(), lr=2e-3),
    torch.optim.SparseAdam(rows.parameters(), lr=2e-2),
]
for _ in range(300):
    x, labels = draw(1024)
    h = model[1](model[0](x))
    logits = h @ rows(labels).T
    targets = torch.arange(len(labels))
    loss = torch.nn.functional.cross_entropy(logits, targets)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()

model[2].weight.data = rows.weight.detach()
_ = model.eval()

# %%
# Conversion
# ----------
# Some hundreds of inputs like those of production calibrate the index. The report says what became
# of each layer: the first is small and stays dense, the second is served by an index.
calibration, _ = draw(2000)
net = sl.from_torch(
    model, calibration, recall=0.99, random_state=0, n_threads=1
)
print(net.report)

# %%
_ = net.report.plot()

# %%
# Single queries
# --------------
# Both networks get 500 queries, one at a time, on one thread.
x, labels = draw(500)
queries = x.numpy()


def clock(predict):
    begin = time.perf_counter()
    found = np.array([predict(i) for i in range(len(queries))])
    seconds = (time.perf_counter() - begin) / len(queries)
    right = np.mean(found == labels.numpy())
    return f"{right:.1%} right, {1e6 * seconds:.0f} µs per query"


with torch.inference_mode():
    by_torch = clock(lambda i: int(model(x[i:i + 1]).argmax()))
by_index = clock(lambda i: int(net.predict(queries[i:i + 1])[0]))
print(f"PyTorch:   {by_torch}")
print(f"sparselsh: {by_index}")

# %%
# One layer inside a model
# ------------------------
# ``sparselsh.torch.accelerate`` replaces wide layers inside any model and leaves the rest to
# PyTorch. The layer returns the logits of the neurons that it finds, and minus infinity for all
# others.
import sparselsh.torch

report = sparselsh.torch.accelerate(
    model, "2", calibration, random_state=0
)
print(report.layers[0].reason)
logits = model(x[:3])
computed = torch.isfinite(logits).sum(dim=1)
print("logits that were computed:", computed.tolist())
sparselsh.torch.restore(model)
