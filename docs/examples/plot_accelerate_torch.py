"""
Serve a PyTorch network faster
==============================

A network with a wide output layer spends its time on scores that nobody asks for: of 50,000 classes the five best are
shown. ``sl.from_torch`` converts a trained network to one that computes only the neurons an index finds, and says what
that changes.
"""

# %%
# A network that PyTorch has trained
# ----------------------------------
# Each class has a direction of its own; an input is the direction of its class and some noise. The wide layer is
# trained with a sampled softmax: the classes of a batch stand against one another.
import time

import numpy as np
import torch

import sparselsh as sl

n_classes, n_in = 50_000, 64
torch.manual_seed(0)
torch.set_num_threads(1)
directions = torch.nn.functional.normalize(torch.randn(n_classes, n_in))


def draw(n):
    labels = torch.randint(0, n_classes, (n,))
    return directions[labels] + 0.07 * torch.randn(n, n_in), labels


model = torch.nn.Sequential(torch.nn.Linear(n_in, 128), torch.nn.ReLU(), torch.nn.Linear(128, n_classes, bias=False))
with torch.no_grad():
    model[2].weight.mul_(0.1)
rows = torch.nn.Embedding.from_pretrained(model[2].weight.detach(), freeze=False, sparse=True)
optimizers = [torch.optim.Adam(model[0].parameters(), lr=2e-3), torch.optim.SparseAdam(rows.parameters(), lr=2e-2)]
for _ in range(300):
    x, labels = draw(1024)
    h = model[1](model[0](x))
    loss = torch.nn.functional.cross_entropy(h @ rows(labels).T, torch.arange(len(labels)))
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
model[2].weight.data = rows.weight.detach()
_ = model.eval()

# %%
# Converted
# ---------
# Some hundreds of inputs like those that will be asked set the index up. The report says what became of each layer: the
# first is small and stays dense, the second is served by an index.
calibration, _ = draw(2000)
net = sl.from_torch(model, calibration, recall=0.99, random_state=0, n_threads=1)
print(net.report)

# %%
_ = net.report.plot()

# %%
# Asked
# -----
x, labels = draw(500)
queries = x.numpy()


def clock(ask):
    begin = time.perf_counter()
    answers = [ask(i) for i in range(len(queries))]
    return np.array(answers), 1e6 * (time.perf_counter() - begin) / len(queries)


with torch.inference_mode():
    dense, dense_time = clock(lambda i: int(model(x[i:i + 1]).argmax()))
found, found_time = clock(lambda i: int(net.predict(queries[i:i + 1])[0]))
print(f"PyTorch:   {np.mean(dense == labels.numpy()):.1%} right, {dense_time:.0f} microseconds a question")
print(f"sparselsh: {np.mean(found == labels.numpy()):.1%} right, {found_time:.0f} microseconds a question")

# %%
# One layer inside a model
# ------------------------
# ``sparselsh.torch.accelerate`` swaps wide layers inside any model and leaves the rest to PyTorch. The layer gives the
# logits of the neurons that it finds and minus infinity for all others.
import sparselsh.torch

report = sparselsh.torch.accelerate(model, "2", calibration, random_state=0)
print(report.layers[0].reason)
logits = model(x[:3])
print("logits that were computed:", torch.isfinite(logits).sum(dim=1).tolist())
sparselsh.torch.restore(model)
