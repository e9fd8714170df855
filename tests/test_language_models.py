"""Language models of Hugging Face with an accelerated head: what they generate stays right."""
import copy
import itertools

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import sparselsh.torch as slt  # noqa: E402

N_TOKENS, ALLOWED = 6000, [17, 900, 4321]


@pytest.fixture(scope="module", params=["lsh", "int8"])
def models(request):
    """A model of the shape of GPT-2, small, with random weights, and a copy with a fast head."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=N_TOKENS, n_positions=64, n_embd=64, n_layer=2,
                                     n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # so that some tokens are likelier than others
        model.transformer.wte.weight *= 10
    fast = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slt, "MIN_GAIN", 0.0)
        fastest = slt.fastest
        plans = itertools.cycle(("dense", "lsh", "int8"))
        patch.setattr(slt, "fastest", lambda *args: (
            fastest(*args), 1e-9 if next(plans) == request.param else 1.0)[1])
        report = slt.accelerate(fast, "lm_head", torch.randint(0, N_TOKENS, (16, 40)),
                                random_state=0, n_threads=1)
    assert set(report.layers[0].plan.values()) == {request.param}
    assert fast.lm_head.weight is fast.transformer.wte.weight  # still tied
    return model, fast


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(0, N_TOKENS, (4, 8), generator=torch.Generator().manual_seed(1))


def generated(model, prompts, **options):
    with torch.inference_mode():
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6,
                              do_sample=False, **options)


@pytest.mark.parametrize("options", [
    {}, {"guidance_scale": 1.5}, {"num_beams": 3}, {"repetition_penalty": 1.3},
    {"prefix_allowed_tokens_fn": lambda batch, ids: ALLOWED},
    {"num_beams": 3, "prefix_allowed_tokens_fn": lambda batch, ids: ALLOWED},
    {"bad_words_ids": [[i] for i in range(2, 3000)]},
], ids=["greedy", "guidance", "beams", "penalty", "grammar", "grammar and beams", "bad words"])
def test_the_same_tokens_are_generated(models, prompts, options):
    want, got = (generated(model, prompts, **options) for model in models)
    assert torch.equal(got, want)
    if "prefix_allowed_tokens_fn" in options:
        assert set(got[:, 8:].unique().tolist()) <= set(ALLOWED)


def test_losses_of_labels_are_right(models):
    tokens = torch.randint(0, N_TOKENS, (16, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        want, got = (model(tokens, labels=tokens).loss for model in models)
    # the mean of 624 estimates, each of them off by about 0.01
    assert abs(got - want) < 1e-3


def test_sampling_by_top_p_draws_from_the_same_distribution(models, prompts):
    with torch.inference_mode():
        want, got = (torch.log_softmax(model(prompts).logits.float(), -1).reshape(-1, N_TOKENS)
                     for model in models)
    sums = torch.zeros(len(want))
    for i, (p, q) in enumerate(zip(want, got, strict=True)):
        order = p.argsort(descending=True)
        kept = order[:int((p[order].exp().cumsum(0) < 0.9).sum()) + 1]
        p, q = (torch.log_softmax(z[kept], -1) for z in (p, q))
        sums[i] = (p.exp() * (p - q)).sum()
    assert sums.mean() < 1e-3


@pytest.mark.parametrize("k", [1, 5])
def test_the_best_tokens_may_be_found_by_another_plan_than_all_logits(models, prompts, k):
    model, fast = models
    with torch.inference_mode():
        hidden = model.transformer(prompts)[0]
        want = torch.topk(model.lm_head(hidden), k)
        for plan in ("dense", "lsh", "int8"):
            fast.lm_head.topk_plan = dict.fromkeys(fast.lm_head.topk_plan, plan)
            values, ids = fast.lm_head.topk(hidden, k)
            torch.testing.assert_close(values, want.values)
            assert torch.equal(ids, want.indices)
