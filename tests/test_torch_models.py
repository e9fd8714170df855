"""PyTorch models converted, given back, and accelerated layer by layer."""
import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparselsh as sl  # noqa: E402
import sparselsh.torch as slt  # noqa: E402

nn = torch.nn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def bits(module):
    return [t.detach().numpy().view(np.uint8).tobytes() for t in module.state_dict().values()]


class Functional(nn.Module):
    """An MLP that is not a Sequential."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(12, 20), nn.Linear(20, 6), nn.Dropout(0.5)

    def forward(self, x):
        return self.fc2(self.drop(nn.functional.relu(self.fc1(torch.flatten(x, 1)))))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x):
        h = self.fc(x)
        return torch.relu(h) + h


class Bag(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(30, 8, mode="sum", **options), nn.Linear(8, 5)

    def forward(self, ids, offsets=None, weights=None):
        return self.out(torch.relu(self.bag(ids, offsets, weights)))


MODELS = {
    "linear": lambda: nn.Linear(12, 6),
    "without bias": lambda: nn.Sequential(nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 6)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(12, 9), nn.ReLU()),
                                    nn.Dropout(0.3), nn.Linear(9, 6)),
    "functional": Functional,
    **{name: lambda make=make: nn.Sequential(nn.Linear(12, 9), make(), nn.Linear(9, 6))
       for name, make in {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
                          "gelu_tanh": lambda: nn.GELU("tanh")}.items()},
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_weights_are_kept_from_torch_and_back(name, rng, tmp_path):
    model = MODELS[name]().eval()
    X = rng.standard_normal((40, 12)).astype(np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(X)).numpy()
    net = sl.from_torch(model, X, n_threads=1)
    # sums of at most 20 products below 10
    np.testing.assert_allclose(net.decision_function(X), want, rtol=0, atol=1e-4)
    back = net.to_torch()
    assert bits(back) == bits(model)
    with torch.inference_mode():
        assert np.array_equal(back(torch.from_numpy(X)).numpy(), want)
    assert bits(sl.from_torch(back).to_torch()) == bits(model)


@pytest.mark.parametrize("options", [{}, {"mode": "mean"}, {"padding_idx": 2}])
def test_bags_of_ids_give_the_outputs_of_torch(rng, options):
    bag = nn.EmbeddingBag(30, 8, **{"mode": "sum"} | options)
    model = nn.Sequential(bag, nn.ReLU(), nn.Linear(8, 5))
    ids = rng.integers(0, 30, (9, 4))
    net = sl.from_torch(model, ids)
    with torch.inference_mode():
        want = model(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(net.decision_function(ids), want, rtol=0, atol=1e-4)
    back = net.to_torch()
    assert bits(back) == bits(model)
    with torch.inference_mode():
        np.testing.assert_array_equal(back(torch.from_numpy(ids)).numpy(), want)


def test_a_bag_with_weights_in_a_custom_module_gives_the_outputs_of_torch(rng):
    import scipy.sparse as sp

    model = Bag()
    X = sp.random_array((9, 30), density=0.2, format="csr", dtype=np.float32,
                        rng=np.random.default_rng(0))
    with torch.inference_mode():
        want = model(torch.from_numpy(X.indices), torch.from_numpy(X.indptr[:-1]),
                     torch.from_numpy(X.data)).numpy()
    np.testing.assert_allclose(sl.from_torch(model, X).decision_function(X),
                               want, rtol=0, atol=1e-4)


def test_concatenated_embeddings_give_the_outputs_of_torch(rng):
    model = nn.Sequential(nn.Embedding(30, 8, padding_idx=0), nn.Flatten(), nn.Linear(24, 5))
    ids = rng.integers(0, 30, (9, 3))
    net = sl.from_torch(model, torch.from_numpy(ids))
    with torch.inference_mode():
        want = model(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(net.decision_function(ids), want, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(net.to_torch()(torch.from_numpy(ids)).numpy(), want)


def test_networks_trained_by_sparselsh_become_torch_modules(rng):
    X = rng.standard_normal((64, 12)).astype(np.float32)
    net = sl.Network([sl.Linear(12, 9, activation="relu"), sl.LSHLinear(9, 6)], random_state=0)
    net.fit(X, rng.integers(0, 6, 64), epochs=1, verbose=False)
    with torch.inference_mode():
        got = slt.to_torch(net)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, net.decision_function(X), rtol=0, atol=1e-4)


class Both(nn.Module):
    """Returns its hidden values too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.a(x)
        return self.b(hidden), hidden


class Asking(Both):
    """Has code that depends on values."""

    def forward(self, x):
        hidden = self.a(x)
        return self.b(hidden) if hidden.sum() > 0 else hidden


def test_what_changes_nothing_is_left_out(rng):
    class Twice(Both):
        def forward(self, x):
            return self.b(torch.relu(torch.relu(self.a(x)).contiguous()))

    model, X = Twice().eval(), rng.standard_normal((5, 4)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(sl.from_torch(model).decision_function(X),
                                   model(torch.from_numpy(X)), rtol=0, atol=1e-5)


def test_sparse_calibration_rows_of_torch_are_refused():
    X = torch.eye(4).to_sparse()
    with pytest.raises(TypeError, match=r"dense tensor, got layout torch\.sparse_coo"):
        sl.from_torch(nn.Sequential(nn.Linear(4, 3)), X)


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardswish()),
     r"Hardswish \(node '1'\) is not supported"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)),
     r"Softmax \(node '1'\) is not supported"),
    (lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 4)),
     r"ReLU \(node '0'\) stands before the first layer"),
    (lambda: nn.Sequential(nn.Conv1d(4, 4, 1)), r"Conv1d .*is not supported"),
    (Branching, r"(add|relu) \(node .*\) .*(takes other values|is not supported)"),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 5)), "1 takes 4 inputs but 0 gives 5"),
    (lambda: nn.Sequential(nn.EmbeddingBag(4, 5, mode="max")),
     "mode='max'; 'sum' and 'mean' are supported"),
    (lambda: nn.Sequential(nn.Embedding(4, 5, max_norm=1.0)),
     "has max_norm, which is not supported"),
    (lambda: nn.Sequential(nn.Dropout()), "the network has no linear layer"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.ReLU()), "follows gelu; a layer has one"),
    (Both, "module must return the output of its last layer alone"),
    (Asking, "module cannot be traced by torch.fx .*give a torch.nn.Sequential"),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 5)),
     "an embedding must be the first layer"),
])
def test_unsupported_modules_are_named_with_their_node(make, message):
    with pytest.raises(ValueError, match=message):
        sl.from_torch(make())


# --- what a module computes beside its forward ----------------------------------------------------


def chain(last=None, middle=None):
    return nn.Sequential(nn.Linear(12, 20), middle or nn.ReLU(), last or nn.Linear(20, 6)).eval()


def normed(norm):
    model = chain(norm(nn.Linear(20, 6)))
    with torch.no_grad():  # a step of an optimizer, after the last call
        for parameter in model[2].parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter))
    return model


def pruned(layer):
    from torch.nn.utils import prune

    prune.random_unstructured(layer, "weight", 0.5)
    prune.l1_unstructured(layer, "bias", 0.3)
    return layer


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    return layer


@pytest.mark.parametrize("norm", [
    pruned, doubled, nn.utils.weight_norm, nn.utils.spectral_norm,
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm,
    nn.utils.parametrizations.orthogonal, lambda layer: doubled(nn.utils.weight_norm(layer))])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
def test_weights_that_are_computed_at_each_call_are_those_of_the_next_call(norm, training, rng):
    model = normed(norm)
    X = rng.standard_normal((40, 12)).astype(np.float32)
    state = copy.deepcopy(model.state_dict())
    net = sl.from_torch(model.train(training), X, n_threads=1)
    assert all(part.training == training for part in model.modules())
    assert all(torch.equal(a, b)
               for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    with torch.inference_mode():
        want = model.eval()(torch.from_numpy(X)).numpy()
    # sums of at most 20 products below 100
    np.testing.assert_allclose(net.decision_function(X), want, rtol=0, atol=1e-3)


def test_what_a_module_learns_later_does_not_change_the_result(rng):
    model, X = chain(), rng.standard_normal((9, 12)).astype(np.float32)
    net = sl.from_torch(model)
    before = net.decision_function(X)
    with torch.no_grad():
        model[0].weight.mul_(2)
    np.testing.assert_array_equal(net.decision_function(X), before)


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Noisy(nn.Dropout):
    def forward(self, x):
        return x + 1


def hooked(register, *args, **options):
    model = chain()
    getattr(model[0], register)(*args, **options)
    return model


def own_forward():
    model = chain()
    model[2].forward = lambda x: x[:, :6]
    return model


def functional(function):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 6)

        def forward(self, x):
            return function(self, self.fc(x))
    return Module().eval()


def quantized():
    import warnings

    from torch.ao.nn.quantized import dynamic

    with warnings.catch_warnings():  # that quantized tensors are deprecated
        warnings.simplefilter("ignore")
        return chain(dynamic.Linear(20, 6))


def sparse_weight():
    model = chain()
    model[2].weight = nn.Parameter(model[2].weight.data.to_sparse(), requires_grad=False)
    return model


class Wrapped(torch.Tensor):
    pass


def wrapped_weight():
    model = chain()
    model[2].weight = nn.Parameter(model[2].weight.data.as_subclass(Wrapped), requires_grad=False)
    return model


UNSEEN = {
    "forward hook": (lambda: hooked("register_forward_hook", lambda m, x, out: 2 * out),
                     r"Linear \(node '0'\) has a forward hook .*handle\.remove\(\)"),
    "forward hook with keywords": (
        lambda: hooked("register_forward_hook", lambda m, x, kw, out: 2 * out, with_kwargs=True,
                       always_call=True),
        r"Linear \(node '0'\) has a forward hook"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook", lambda m, x: (2 * x[0],)),
                 r"Linear \(node '0'\) has a forward hook"),
    "hook of the activation": (
        lambda: (model := chain(), model[1].register_forward_hook(lambda m, x, out: out + 1))[0],
        r"ReLU \(node '1'\) has a forward hook"),
    "hook of the whole": (
        lambda: (model := chain(), model.register_forward_hook(lambda m, x, out: 2 * out))[0],
        r"mul \(node 'mul'\) is not supported"),
    "forward of an object": (own_forward, r"Linear \(node '2'\) has a forward of its own"),
    "subclass of a layer": (lambda: chain(Halved(20, 6)),
                            r"Halved \(node '2'\) is a subclass of Linear with another forward"),
    "subclass of dropout": (lambda: chain(middle=Noisy()),
                            r"Noisy \(node '1'\) is a subclass of Dropout with another forward"),
    "flatten of rows": (lambda: chain(middle=nn.Flatten(0)), "flattens the dimensions 0 to -1"),
    "flatten by a function": (lambda: functional(lambda self, x: torch.flatten(x)),
                              "flattens the dimensions 0 to -1"),
    "flatten by a method": (lambda: functional(lambda self, x: x.flatten(end_dim=1)),
                            "flattens the dimensions 0 to 1"),
    "dropout for ever": (lambda: functional(lambda self, x: nn.functional.dropout(x)),
                         r"dropout \(node 'dropout'\) drops in evaluation mode too"),
    "quantized module": (quantized, r"Linear \(node '2'\) is quantized; .*storage='int8'"),
    "sparse weight": (sparse_weight, r"2\.weight must be dense, got layout torch\.sparse_coo"),
    "tensor subclass": (wrapped_weight, r"2\.weight must be a plain tensor, got Wrapped"),
    "meta device": (lambda: chain(nn.Linear(20, 6, device="meta")),
                    r"2\.weight is on the device meta"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_of_a_module_is_refused_by_its_name(name):
    make, message = UNSEEN[name]
    with pytest.raises((TypeError, ValueError), match=message):
        sl.from_torch(make())


class Same(nn.Linear):
    """A subclass that computes what a Linear does."""


def test_a_subclass_with_the_same_forward_is_taken():
    assert bits(sl.from_torch(chain(Same(20, 6))).to_torch())


def test_a_hook_for_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda m, x, out: None)
    try:
        with pytest.raises(ValueError, match="torch has, for all modules, a forward hook"):
            sl.from_torch(chain())
    finally:
        handle.remove()


def test_dropout_of_a_training_module_is_that_of_evaluation_mode(rng):
    X = rng.standard_normal((9, 12)).astype(np.float32)
    model = functional(lambda self, x: nn.functional.dropout(x, 0.5, self.training)).train()
    net = sl.from_torch(model)
    assert model.training and model.fc.training
    with torch.inference_mode():
        np.testing.assert_allclose(net.decision_function(X), model.eval()(torch.from_numpy(X)),
                                   rtol=0, atol=1e-4)  # sums of 12 products below 10


def test_layers_that_share_a_weight_each_get_it(rng):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)).eval()
    model[2].weight = model[0].weight
    X = rng.standard_normal((9, 12)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(sl.from_torch(model).decision_function(X),
                                   model(torch.from_numpy(X)), rtol=0, atol=1e-4)


def test_bad_weights_are_refused(rng):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16"),
                        (torch.float64, "float64")):
        other = copy.deepcopy(model).to(dtype)
        with pytest.raises(TypeError,
                           match=rf"0\.weight must be float32, got {name}; .*module\.float\(\)"):
            sl.from_torch(other)
        want = copy.deepcopy(other).float()
        assert bits(sl.from_torch(other, upcast=True).to_torch()) == bits(want)
    with torch.no_grad():
        model[2].weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"2\.weight.*(nan|finite)"):
        sl.from_torch(model)
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got 3"):
        sl.from_torch(3)


def test_bfloat16_files_are_refused_and_upcast(tmp_path):
    st = pytest.importorskip("safetensors.torch")
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(torch.bfloat16)
    st.save_file(model.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(TypeError, match=r"0\.weight must be float32, got bfloat16; .*upcast=True"):
        sl.from_file(tmp_path / "m.safetensors")
    got = sl.from_file(tmp_path / "m.safetensors", upcast=True).to_torch()
    assert bits(got) == bits(model.float())


# --- accelerate -----------------------------------------------------------------------------------


class Tagger(nn.Module):
    """A model that is not an MLP, with a wide layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, 16), nn.GRU(16, 24, batch_first=True)
        self.head = nn.ModuleDict({"out": nn.Linear(24, 30_000), "small": nn.Linear(24, 3)})

    def forward(self, ids):
        h, _ = self.rnn(self.embed(ids))
        return self.head["out"](h)


@pytest.fixture
def always(monkeypatch):
    """Make every index count as a gain, whatever the timings say."""
    monkeypatch.setattr(slt, "MIN_GAIN", 0.0)


def test_an_accelerated_layer_gives_the_largest_logits_and_fills_the_others(always):
    model = Tagger().eval()
    ids = torch.randint(0, 50, (40, 12))
    with torch.inference_mode():
        want = model(ids)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    report = slt.accelerate(model, "head.out", ids, recall=0.95, fill=-torch.inf, random_state=0)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert "lsh" in report.layers[0].reason and report.layers[0].recall > 0.9
    with torch.no_grad():
        got = model(ids)
    assert got.shape == want.shape
    there = torch.isfinite(got)
    layer = model.head["out"]
    assert 0 < there.sum(-1).max() <= layer.n_logits
    torch.testing.assert_close(got[there], want[there], rtol=0, atol=1e-4)
    # 480 rows, recall 0.95 of the five best: the best one is missed less often than that
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.9
    values, found = layer.topk(model.rnn(model.embed(ids))[0].detach(), 3)
    assert values.shape == found.shape == (40, 12, 3)
    torch.testing.assert_close(values, want.gather(-1, found), rtol=0, atol=1e-4)
    assert torch.softmax(got, -1).isfinite().all()
    again = pickle.loads(pickle.dumps(layer.engine))
    assert again.n_candidates == layer.engine.n_candidates
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(ids), got, rtol=0, atol=0)
    state = layer.__getstate__()
    del state["topk_plan"]  # as in pickles of before
    old = type(layer).__new__(type(layer))
    old.__setstate__(state)
    assert old.topk_plan == layer.plan


def test_restore_gives_the_model_back(always):
    model = Tagger().eval()
    ids, state = torch.randint(0, 50, (40, 12)), copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        want = model(ids)
    slt.accelerate(model, ["head.out"], [ids[:20], ids[20:]], fill=0.0, random_state=0)
    with torch.inference_mode():
        assert torch.isfinite(model(ids)).all()
    assert slt.restore(model) is model and type(model.head["out"]) is nn.Linear
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert list(state) == list(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(ids), want)


def test_a_small_layer_is_not_replaced():
    model = Tagger().eval()
    small = model.head["small"]
    model.forward = lambda ids: small(model.rnn(model.embed(ids))[0])
    report = slt.accelerate(model, "head.small", torch.randint(0, 50, (40, 12)))
    assert model.head["small"] is small
    assert report.layers[0].reason.startswith("kept dense: nothing gains a tenth (us per row, 1 ")
    assert set(report.layers[0].plan.values()) == {"dense"}


@pytest.mark.parametrize("names, error, message", [
    ("head.no", ValueError,
     "the model has no layer 'head.no'; its Linear layers are head.out, head.small"),
    ("rnn", TypeError, "'rnn' is a GRU, not a Linear; Linear are head.out, head.small"),
    ("x.*", ValueError, r"no Linear layer matches 'x\.\*'; the model has head.out, head.small"),
    ([], ValueError, "names must hold at least one name"),
])
def test_wrong_names_are_refused_with_a_list_of_the_right_ones(names, error, message):
    with pytest.raises(error, match=message):
        slt.accelerate(Tagger(), names, torch.zeros(9, 3, dtype=torch.long))


def test_bad_layers_and_inputs_change_nothing():
    ids = torch.randint(0, 50, (40, 12))
    for change, error, message in [
            (lambda m: m.head.update({"out": nn.Linear(24, 30_000, device="meta")}), TypeError,
             r"head\.out\.weight is on the device meta"),
            (lambda m: m.head["out"].weight.data.fill_(float("nan")), ValueError,
             r"head\.out\.weight.*(nan|finite)")]:
        model = Tagger()
        change(model)
        with pytest.raises(error, match=message):
            slt.accelerate(model, "head.out", ids)
        assert type(model.head["out"]) is nn.Linear
    with pytest.raises(ValueError, match=r"layer 'head\.small' fewer than two rows"):
        slt.accelerate(Tagger(), "head.small", ids)
    with pytest.raises(ValueError, match="fill must be a number or minus infinity, got nan"):
        slt.accelerate(Tagger(), "head.out", ids, fill=float("nan"))


def test_hooks_of_an_accelerated_layer_still_run_and_can_be_removed(always):
    model = Tagger().eval()
    ids = torch.randint(0, 50, (40, 12))
    layer = model.head["out"]
    before = layer.register_forward_pre_hook(lambda m, args: (args[0] / 2,))
    after = layer.register_forward_hook(lambda m, args, kw, out: out + 1, with_kwargs=True)
    with torch.inference_mode():
        want = model(ids)
    slt.accelerate(model, "head.out", ids, recall=0.95, fill=-torch.inf, random_state=0)
    with torch.no_grad():
        got = model(ids)
    there = torch.isfinite(got)
    torch.testing.assert_close(got[there], want[there], rtol=0, atol=1e-4)
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.9
    slt.restore(model)
    with torch.inference_mode():
        assert torch.equal(model(ids), want)
    before.remove()
    after.remove()
    assert not model.head["out"]._forward_hooks and not model.head["out"]._forward_pre_hooks


@pytest.mark.parametrize("change, message", [
    (pruned, r"RandomUnstructured.*prune\.remove"),
    (nn.utils.spectral_norm, r"SpectralNorm.*remove_spectral_norm"),
    (doubled, r"the bias of 'head\.out' is computed at each call.*remove_parametrizations"),
    (lambda layer: vars(layer).update(forward=lambda x: x), "has a forward of its own"),
])
def test_weights_that_are_computed_at_each_call_are_not_accelerated(change, message):
    model = Tagger()
    change(model.head["out"])
    with pytest.raises(ValueError, match=message):
        slt.accelerate(model, "head.out", torch.randint(0, 50, (40, 12)))


def test_the_mode_of_each_submodule_is_kept(always):
    model = Tagger().train()
    model.rnn.eval()
    slt.accelerate(model, "head.out", torch.randint(0, 50, (40, 12)), random_state=0)
    assert model.training and model.embed.training and not model.rnn.training


def wide_linear():
    """A layer whose neurons are not alike, and inputs that favour some of them."""
    layer = nn.Linear(24, 30_000)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(30_000, 1) * 4)
    return layer


class Head(nn.Module):
    def __init__(self, layer=None):
        super().__init__()
        self.body, self.out = nn.Linear(16, 24), layer or wide_linear()

    def forward(self, x):
        return self.out(torch.tanh(self.body(x)))


@pytest.fixture
def head(always):
    """A model that was accelerated, its inputs, and its logits before."""
    model, x = Head().eval(), torch.randn(300, 16)
    with torch.inference_mode():
        want = model(x)
    slt.accelerate(model, "out", x, random_state=0)
    return model, x, want


def test_logits_that_were_not_computed_are_estimates_by_default(head):
    model, x, want = head
    with torch.inference_mode():
        for rows in (x[:5], x):  # few are estimated, in a batch all are computed
            got = model(rows)
            assert torch.isfinite(got).all()
            # of rows in 8 bits; logits are about 2
            assert (got - want[:len(rows)]).abs().mean() < 0.01
            assert (got.argmax(-1) == want[:len(rows)].argmax(-1)).float().mean() >= 0.99
            # guidance of two prompts, and a constraint to a few tokens
            guided, wanted = (torch.log_softmax(z, -1) for z in (got, want[:len(rows)]))
            guided = guided[0] + 2 * (guided[1] - guided[0])
            wanted = wanted[0] + 2 * (wanted[1] - wanted[0])
            torch.testing.assert_close(guided, wanted, rtol=0, atol=0.2)
            allowed = torch.arange(100, 108)
            torch.testing.assert_close(got[:, allowed], want[:len(rows), allowed], rtol=0,
                                       atol=0.05)
        labels = want[:5].argsort(-1)[:, -50]
        loss = nn.functional.cross_entropy
        torch.testing.assert_close(loss(model(x[:5]), labels), loss(want[:5], labels), rtol=0,
                                   atol=0.02)


def test_a_gradient_through_an_accelerated_layer_is_an_error(head):
    model, x, _ = head
    out = model(x[:3])
    assert out.requires_grad
    with pytest.raises(RuntimeError, match=r"no gradient flows through the accelerated layer "
                       r"'out'; call sparselsh\.torch\.restore"):
        out.sum().backward()
    slt.restore(model)
    model(x[:3]).sum().backward()
    assert model.out.weight.grad is not None


@pytest.mark.parametrize("change", [
    lambda model: torch.nn.init.zeros_(model.out.bias),
    lambda model: torch.nn.init.normal_(model.out.weight),
    lambda model: model.load_state_dict(model.state_dict()),
    lambda model: setattr(model.out, "weight", nn.Parameter(model.out.weight * 2)),
])
def test_an_index_of_other_weights_is_not_used(head, change):
    model, x, _ = head
    change(model)
    with pytest.raises(RuntimeError, match="the weights of the accelerated layer 'out' have chang"):
        model(x[:3])
    slt.accelerate(model, "out", x, random_state=0)
    with torch.inference_mode():
        got = model(x[:3])
        # of weights of deviation 1, logits are about 5
        torch.testing.assert_close(got, slt.restore(model)(x[:3]), rtol=0, atol=0.3)


def test_a_layer_is_accelerated_again(head):
    model, x, want = head
    engine = model.out.engine
    slt.accelerate(model, "o*", x, fill=0.0, random_state=0)
    assert model.out.engine is not engine and model.out.fill == 0.0
    slt.restore(model)
    assert type(model.out) is nn.Linear
    with torch.inference_mode():
        assert torch.equal(model(x), want)


def test_a_model_can_be_cast_afterwards(head):
    model, x, want = head
    model.bfloat16()
    with torch.inference_mode():
        got = model(x.bfloat16())
    assert got.dtype == torch.bfloat16
    # inputs of 8 bits: logits are about 2
    assert (got - want).abs().mean() < 0.05
    assert slt.restore(model).out.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.isfinite(model(x.bfloat16())).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_taken_as_they_are(always, dtype):
    model, x = Head().eval().to(dtype), torch.randn(300, 16).to(dtype)
    place = model.out.weight.data_ptr()
    with torch.inference_mode():
        want = model(x)
    slt.accelerate(model, "out", x, random_state=0)
    assert model.out.weight.data_ptr() == place and model.out.weight.dtype == dtype
    with torch.inference_mode():
        got = model(x[:5])
    assert got.dtype == dtype
    # torch rounds to 8 bits, or 11: logits are about 2
    assert (got - want[:5]).abs().mean() < 0.02
    values, ids = model.out.topk(torch.randn(4, 24).to(dtype), 3)
    assert values.shape == ids.shape == (4, 3)


def test_conv1d_of_hugging_face_is_a_linear_layer(always):
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(30_000, 24)
    with torch.no_grad():
        layer.weight.mul_(20 * torch.rand(30_000))
    model, x = Head(layer).eval(), torch.randn(300, 16)
    with torch.inference_mode():
        want = model(x)
    slt.accelerate(model, "out", x, random_state=0)
    assert type(model.out).__name__ == "AcceleratedLinear"
    with torch.inference_mode():
        for rows in (x[:5], x):
            got = model(rows)
            assert (got.argmax(-1) == want[:len(rows)].argmax(-1)).float().mean() >= 0.99
            torch.testing.assert_close(got, want[:len(rows)], rtol=0, atol=0.05)
    assert slt.restore(model).out is layer
    with torch.inference_mode():
        assert torch.equal(model(x), want)


def test_settings_are_raised_where_unseen_inputs_need_it(always, monkeypatch):
    model, x = Head().eval(), torch.randn(300, 16)
    found = iter([0.9, 0.95, 0.995, 0])  # the last is that of 8 bits
    monkeypatch.setattr(slt, "recall_of", lambda *_: next(found))
    report = slt.accelerate(model, "out", x, random_state=0)
    assert report.layers[0].recall == 0.995
    assert "set for a recall of 99.750%, to reach 99.000% on unseen inputs" in str(report)
    monkeypatch.setattr(slt, "recall_of", lambda *_: 0.9)
    report = slt.accelerate(model, "out", x, random_state=0)
    assert report.layers[0].recall == 0.9
    assert "RECALL FALLS SHORT of 99.000% on unseen inputs: 90.000%" in str(report)


def test_importing_sparselsh_torch_does_not_import_torch():
    import subprocess
    import sys

    code = ("import sys, sparselsh.torch, sparselsh.inference.readers.onnx; "
            "assert not {'torch', 'onnx'} & set(sys.modules)")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_missing_torch_gives_the_install_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'type: pip install "sparselsh-nn\[torch\]"'):
        sl.from_torch(object())


# --- layers whose every output is read --------------------------------------------------------


class Block(nn.Module):
    """A feed-forward pair with a residual connection."""

    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(96, 512), nn.Linear(512, 96), activation
        nn.init.constant_(self.fc1.bias, -2.0)  # few activations are above zero

    def forward(self, x):
        return x + self.fc2(self.activation(self.fc1(x)))


def squared_relu(x):
    return torch.relu(x) ** 2


@pytest.mark.parametrize("activation", [nn.ReLU(), squared_relu, nn.GELU()],
                         ids=["relu", "squared relu", "gelu"])
def test_feed_forward_pairs_keep_their_outputs(always, activation):
    model = Block(activation).eval()
    x = torch.randn(4, 80, 96)
    with torch.inference_mode():
        want = model(x)
    report = slt.accelerate(model, ["fc1", "fc2"], x, outputs="all", error=0.02, n_threads=1)
    is_sparse = not isinstance(activation, nn.GELU)
    first, second = report.layers
    assert set(first.plan.values()) == {"int8"} and 0.001 < first.output_error <= 0.02
    assert ("rows" in second.reason) == is_sparse
    assert 0 < first.share < 1 and "of the time of the model on the calibration" in str(report)
    with torch.inference_mode():
        for got, part in ((model(x), want), (model(x[:1, :1]), want[:1, :1])):
            # of two layers, each within 0.02, beside a part that has none
            assert torch.linalg.norm(got - part) / torch.linalg.norm(part) < 0.03
    assert type(slt.restore(model).fc2) is nn.Linear


def test_inputs_less_sparse_than_in_the_calibration_are_computed_exactly(always):
    model = Block(nn.ReLU()).eval()
    slt.accelerate(model, "fc2", torch.randn(300, 96), outputs="all", error=0, n_threads=1)
    assert set(model.fc2.plan.values()) == {"rows"}
    h = torch.randn(40, 512)
    with torch.inference_mode():
        for rows in (h, torch.relu(h - 2), torch.zeros(1, 512)):
            want = nn.functional.linear(rows, model.fc2.weight, model.fc2.bias)
            torch.testing.assert_close(model.fc2(rows), want, rtol=0, atol=1e-4)


def test_a_layer_whose_error_is_too_large_is_kept_with_the_reason(always):
    model = Block(nn.GELU()).eval()
    report = slt.accelerate(model, "fc1", torch.randn(300, 96), outputs="all", error=1e-4)
    assert type(model.fc1) is nn.Linear
    assert "int8 has the error" in report.layers[0].reason
