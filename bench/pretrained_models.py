"""Networks as people have them: OCR networks, a language-model head, scikit-learn, an ALS model.

usage: python -P bench/pretrained_models.py [ocr lm sklearn als] [--threads 1] [--rounds 5]
           [--ocr-packages FOLDER] [--language-model FOLDER] [--json FILE]

What is measured is CPU seconds per call, contenders in turn; a figure is the median of the rounds.

    ocr      from_onnx(path, calibration) as it is, on lines of Chinese text (bench/text_lines.py),
             beside ONNX Runtime float32 and dynamic int8 (matrix products alone), each with the
             ArgMax that reads the text. Dynamic int8 of all operators is left out: convolutions
             become ConvInteger, which ONNX Runtime computes several times slower than in float32
             and by one scale per tensor (--all-int8 shows it). FOLDER is where `pip install
             --no-deps --target FOLDER ddddocr rapidocr rapidocr-onnxruntime` has put the networks.
    lm       a language model of the shape of GPT-2 small (50,257 x 768; see
             bench/make_language_model.py) with an accelerated head: tokens by greedy search, with
             guidance, beams and a grammar; losses, the divergence of the distributions that are
             sampled; the head alone and a token of the whole model beside PyTorch
    sklearn  a linear classifier with 24,473 classes: predict
    als      a matrix factorization with 100,000 items: ten items that the user does not have
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import restart_with, thread_environment, write_json
from text_lines import rendered, text_lines

OCR = {"PP-OCRv6 small": ("rapidocr/models/PP-OCRv6_rec_small.onnx", 48, 3),
       "PP-OCRv4": ("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", 48, 3),
       "ddddocr": ("ddddocr/common.onnx", 64, 1),
       "ddddocr int8": ("ddddocr/common_old.onnx", 64, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["ocr", "lm", "sklearn", "als"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ocr-packages", default=".")
    parser.add_argument("--language-model", metavar="FOLDER",
                        help="that bench/make_language_model.py has written")
    parser.add_argument("--storage", nargs="+", default=["float32", "bfloat16", "int8"],
                        help="of the index of the language model's head")
    parser.add_argument("--lines", type=int, nargs=3, default=[60, 200, 24],
                        help="of text: for the calibration, the test, and the times")
    parser.add_argument("--all-int8", action="store_true",
                        help="dynamic int8 of all operators too, convolutions included")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    restart_with(thread_environment(args.threads))
    figures = {}
    for part in args.parts:
        figures |= globals()[f"measure_{part}"](args)
    if args.json:
        write_json(args.json, figures)


def medians(contenders, inputs, rounds):
    """CPU seconds per input of each contender, in turn."""
    times = {name: [] for name in contenders}
    for call in contenders.values():
        call(inputs[0])
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = time.process_time()
            for x in inputs:
                call(x)
            times[name].append((time.process_time() - begin) / len(inputs))
    return {name: float(np.median(values)) for name, values in times.items()}


def show(title, times, unit=1e3, word="ms"):
    print(title + ": " + ", ".join(f"{name} {unit * t:,.3f} {word}" for name, t in times.items()),
          flush=True)


# -- OCR -----------------------------------------------------------------------------------------


def measure_ocr(args):
    figures = {}
    lines = text_lines(*args.lines[:2])
    n_timed = args.lines[2]
    for name, (path, height, n_channels) in OCR.items():
        path = Path(args.ocr_packages) / path
        if not path.exists():
            print(f"{name}: no {path}")
            continue
        calibration, test = ([image(line, height, n_channels) for line in part] for part in lines)
        net = sl.from_onnx(path, calibration, n_threads=args.threads, random_state=0)
        axis = 0 if "ddddocr" in name else 1
        # an element of a batch is along the other axis; characters are those of a CTC decoder
        contenders = {"sparselsh": net.predict}
        for kind in ("float32", "int8", "int8 products"):
            if ("int8" in name and kind != "float32") or (kind == "int8" and not args.all_int8):
                continue
            contenders[f"onnxruntime {kind}"] = rival(path, kind, args.threads)
        want = [characters(contenders["onnxruntime float32"](x), axis) for x in test]
        same = {}
        for contender, read in contenders.items():
            got = [characters(read(x), axis) for x in test]
            same[contender] = equal_characters(got, want)
        times = medians(contenders, test[:n_timed], args.rounds)
        rows = [net._rows_of(net._values((x,), {})) for x in test[:n_timed]]
        head = head_times(net.head, rows, args.rounds)
        show(f"{name}, whole network", times)
        show(f"{name}, layer {net.report.layers[0].shape}", head, 1e6, "us")
        print(f"{name}, characters equal: "
              + ", ".join(f"{contender} {share:.3%}" for contender, share in same.items()))
        figures[name] = {"seconds": times, "head": head, "characters": same}
    return figures


def head_times(head, rows, rounds):
    """CPU seconds of the converted layers, for the rows of a line and for one row."""
    out = {}
    for word, parts in (("the rows of a line", rows), ("one row", [r[:1] for r in rows])):
        out |= medians({word: lambda r: head.topk(r, 1),
                        f"{word} dense": lambda r: head.topk(r, 1, exact=True)}, parts, rounds)
    return out


def image(line, height, n_channels):
    gray = rendered(line, height).astype(np.float32) / 255
    if n_channels == 1:
        return gray[None, None]
    return np.repeat((2 * gray - 1)[None, None], 3, axis=1)


def rival(path, kind, n_threads):
    """The model with an ArgMax behind it, in ONNX Runtime."""
    import onnx
    import onnxruntime
    from onnx import helper
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    output = model.graph.output[0]
    last = model.graph.node[-1]
    score = last.input[0] if last.op_type == "Softmax" else output.name  # it needs none
    model.graph.node.append(helper.make_node("ArgMax", [score], ["best"], axis=-1, keepdims=0))
    if score != output.name:
        model.graph.node.remove(last)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("best", 7, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = n_threads, 3
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.onnx"
        onnx.save(model, file)
        if kind != "float32":
            products = ["MatMul", "Gemm", "LSTM"] if "products" in kind else None
            quantize_dynamic(file, file, op_types_to_quantize=products)
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def characters(best, axis):
    """The ids that a CTC decoder reads, of a batch of one."""
    row = np.asarray(best).reshape(best.shape[axis], -1)[:, 0]
    ids = row[np.flatnonzero(np.diff(row, prepend=-1))]
    return ids[ids != 0]


def equal_characters(got, want):
    """The fraction of the characters that are equal, by the edit distance of the lines."""
    wrong = sum(edit_distance(a, b) for a, b in zip(got, want, strict=True))
    return 1 - wrong / sum(map(len, want))


def edit_distance(a, b):
    if np.array_equal(a, b):
        return 0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


# -- a head of a language model ------------------------------------------------------------------


PROMPT, GENERATED = 32, 16  # tokens


def measure_lm(args):
    """A language model of the shape of GPT-2 small; its texts are those that it was not trained on.

    The calibration has the first half of them, the test the second.
    """
    import torch
    from transformers import GPT2LMHeadModel

    if args.language_model is None:
        print("lm: no --language-model; bench/make_language_model.py makes one")
        return {}
    torch.set_num_threads(args.threads)
    model = GPT2LMHeadModel.from_pretrained(args.language_model).eval()
    tokens = torch.from_numpy(np.load(f"{args.language_model}/held_out.npy").astype(np.int64))
    half = len(tokens) // 2
    rng = np.random.default_rng(0)

    def windows(first, n, length):
        starts = first + rng.permutation((half - length) // length)[:n] * length
        return torch.stack([tokens[s:s + length] for s in starts])

    calibration, texts = windows(0, 32, 64), windows(half, 16, 128)
    prompts = windows(half, 8, PROMPT)
    with torch.inference_mode():
        hidden = model.transformer(texts)[0].reshape(-1, model.config.n_embd)
        want = model.lm_head(hidden)
        losses = [model(text[None], labels=text[None]).loss for text in texts]
        reference = {name: generated(model, prompts, options)
                     for name, options in WAYS.items()}
        entropy = torch.distributions.Categorical(logits=want).entropy()
    print(f"lm: {len(hidden)} states, loss {float(torch.stack(losses).mean()):.2f}; of the next "
          f"token entropy {float(entropy.mean()):.2f}, spread of logits "
          f"{float(want.std(1).mean()):.2f}", flush=True)
    figures = {}
    for storage in args.storage:
        figures[storage] = with_head(args, model, storage, calibration, texts, prompts, hidden,
                                     want, losses, reference)
    figures["others"] = other_ways(args, model, calibration, prompts, reference)
    return {"lm": figures}


def other_ways(args, model, calibration, prompts, reference):
    """Tokens by greedy search where only the best logit is read, and with the blocks in 8 bits."""
    import torch

    inputs, out = list(calibration.split(8)), {}
    options = {"n_threads": args.threads, "random_state": 0}
    ways = {
        "only the best logit": lambda: sl.torch.accelerate(model, "lm_head", inputs, k=1,
                                                           fill=float("-inf"), **options),
        "and the blocks": lambda: sl.torch.accelerate(model, "transformer.h.*", inputs,
                                                      outputs="all", **options)}
    with torch.inference_mode():
        dense = seconds_of_tokens(model, prompts[:2], args.rounds)
        for name, change in ways.items():
            report = change()
            pairs = list(zip(generated(model, prompts, {}), reference["greedy"], strict=True))
            same = share(torch.tensor([torch.equal(a, b) for a, b in pairs]), True)
            seconds = seconds_of_tokens(model, prompts[:2], args.rounds)
            plans = {str(tuple(layer.plan.values())) for layer in report.layers}
            print(f"lm, {name}: the same texts {same:.1%}, a token {1e3 * seconds:.1f} CPU ms, "
                  f"dense {1e3 * dense:.1f}; plans {', '.join(sorted(plans))}", flush=True)
            out[name] = {"same_texts": same, "token": seconds, "dense": dense}
    sl.torch.restore(model)
    return out


WAYS = {"greedy": {}, "guidance": {"guidance_scale": 1.5}, "beams": {"num_beams": 3},
        "grammar": {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(100, 50_000, 997))}}


def generated(model, prompts, options):
    """The tokens that follow each prompt, one prompt at a time."""
    return [model.generate(prompt[None], attention_mask=(prompt[None] >= 0).long(),
                           max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False,
                           pad_token_id=0, **options)[0, PROMPT:]
            for prompt in prompts]


def seconds_of_tokens(model, prompts, rounds):
    """CPU seconds of a token that is generated."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        generated(model, prompts, {})
        times.append((time.process_time() - begin) / (GENERATED * len(prompts)))
    return float(np.median(times))


def with_head(args, model, storage, calibration, texts, prompts, hidden, want, losses, reference):
    """The figures of the model with an accelerated head, which it gives back at the end."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    begin = time.process_time()
    report = sl.torch.accelerate(model, "lm_head", list(calibration.split(8)), storage=storage,
                                 n_threads=args.threads, random_state=0)
    seconds = time.process_time() - begin
    print(f"lm {storage}: accelerated in {seconds:.0f} CPU s; {report.layers[0].reason}")
    layer, rows = model.lm_head, [row[None] for row in hidden]
    if not hasattr(layer, "topk"):
        return {"plan": "dense"}
    with torch.inference_mode():
        got = torch.cat([layer(row) for row in rows])
        batch = layer(hidden)
        best = torch.cat([layer.topk(row, 1).indices for row in rows])
        label = torch.roll(texts, -1, 1).reshape(-1)
        ids = torch.arange(0, 50_000, 997)
        figures = {
            "greedy": share(got.argmax(1), want.argmax(1)),
            "greedy_batch": share(batch.argmax(1), want.argmax(1)),
            "topk": share(best[:, 0], want.argmax(1)),
            "divergence": float(divergence(want, got).mean()),
            "divergence_top_p": float(top_p_divergence(want, got).mean()),
            "logit_error": float((got - want).square().mean().sqrt()),
            "logit_error_batch": float((batch - want).square().mean().sqrt()),
            "loss_error_single": float((cross_entropy(got, label)
                                        - cross_entropy(want, label)).abs()),
            "loss_error": max(float(abs(model(text[None], labels=text[None]).loss - loss))
                              for text, loss in zip(texts, losses, strict=True)),
            "score_error": float((layer.score(hidden[:20], ids) - want[:20, ids]).abs().max())}
        for name, options in WAYS.items():
            found = generated(model, prompts, options)
            pairs = list(zip(found, reference[name], strict=True))
            figures[f"same_texts_{name}"] = share(torch.tensor([torch.equal(a, b)
                                                                for a, b in pairs]), True)
        print(f"lm {storage}: " + ", ".join(f"{name} {value:.5g}"
                                            for name, value in figures.items()), flush=True)

        weight = layer.weight
        calls = {"torch float32": lambda row: linear(row, weight), "logits": layer,
                 "topk": lambda row: layer.topk(row, 1), "logsumexp": layer.logsumexp}
        head = medians(calls, rows[:40], args.rounds)
        many = {name: t / 256 for name, t in medians(
            {name: calls[name] for name in ("torch float32", "logits", "topk")},
            [hidden[:256]], args.rounds).items()}
        by_model = {"torch float32": [], "accelerated": []}
        for _ in range(args.rounds):
            by_model["accelerated"].append(seconds_of_tokens(model, prompts[:2], 1))
            accelerated, model.lm_head = layer, layer.original_layer()
            by_model["torch float32"].append(seconds_of_tokens(model, prompts[:2], 1))
            model.lm_head = accelerated
        token = {name: float(np.median(values)) for name, values in by_model.items()}
    show(f"lm {storage}, one row", head, 1e6, "us")
    show(f"lm {storage}, per row of 256", many, 1e6, "us")
    show(f"lm {storage}, one token of the model", token)
    sl.torch.restore(model)
    return figures | {"head": head, "batch": many, "token": token,
                      "reason": report.layers[0].reason}


def share(a, b):
    return float((a == b).float().mean())


def divergence(want, got):
    """KL of the distributions of the next token."""
    import torch

    log_p, log_q = torch.log_softmax(want, -1), torch.log_softmax(got, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def top_p_divergence(want, got, p=0.9):
    """KL of the distributions of the tokens that make up p."""
    import torch

    out = []
    for z, other in zip(want, got, strict=True):
        order = z.argsort(descending=True)
        kept = order[:int((torch.softmax(z, 0)[order].cumsum(0) < p).sum()) + 1]
        out.append(divergence(z[kept], other[kept]))
    return torch.stack(out)


# -- scikit-learn and matrix factorization -------------------------------------------------------


def measure_sklearn(args):
    from sklearn.linear_model import SGDClassifier

    rng = np.random.default_rng(0)
    n, d = 24_473, 256
    W = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.4
    W *= rng.gamma(20, 1 / 20, (n, 1))
    estimator = SGDClassifier()
    estimator.coef_, estimator.intercept_ = W, 0.1 * rng.standard_normal(n)
    estimator.classes_, estimator.n_features_in_ = np.arange(n), d
    near = rng.integers(0, n, 4000)
    X = (0.5 * W[near] + 0.5 * np.arange(1, d + 1) ** -0.4
         * rng.standard_normal((4000, d))).astype(np.float32)
    fast = sl.from_sklearn(estimator, X[:2000], n_threads=args.threads, random_state=0)
    test = X[2000:]
    same = float((fast.predict(test) == estimator.predict(test)).mean())
    calls = {"scikit-learn": estimator.predict, "sparselsh": fast.predict}
    one = medians(calls, [row[None] for row in test[:60]], args.rounds)
    batch = {name: t / 256 for name, t in medians(calls, [test[:256]], args.rounds).items()}
    print(f"sklearn: the same class {same:.3%}; {fast.report.layers[0].reason}")
    show("sklearn, one row", one, 1e6, "us")
    show("sklearn, per row of 256", batch, 1e6, "us")
    return {"sklearn": {"same": same, "one": one, "batch": batch}}


def measure_als(args):
    import scipy.sparse as sp
    from implicit.als import AlternatingLeastSquares

    rng = np.random.default_rng(0)
    n_users, n_items, d = 20_000, 100_000, 128
    groups = rng.integers(0, 200, n_users)
    counts = rng.integers(5, 60, n_users)
    users = np.repeat(np.arange(n_users), counts)
    popular = (rng.pareto(1.2, len(users)) * 60).astype(int) % n_items
    of_group = (groups[users] * 500 + (rng.pareto(1.2, len(users)) * 9).astype(int)) % n_items
    items = np.where(rng.random(len(users)) < 0.2, popular, of_group)
    user_items = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)),
                               shape=(n_users, n_items))
    model = AlternatingLeastSquares(factors=d, iterations=3, random_state=0,
                                    num_threads=args.threads)
    model.fit(user_items, show_progress=False)
    fast = sl.from_implicit(model, n_threads=args.threads, random_state=0)
    some = rng.permutation(n_users)[:500]
    want, _ = model.recommend(some, user_items[some], N=10)
    got, _ = fast.recommend(some, user_items[some], N=10)
    same = float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(got, want, strict=True)]))
    calls = {"implicit": lambda u: model.recommend(u, user_items[u], N=10),
             "sparselsh": lambda u: fast.recommend(u, user_items[u], N=10)}
    one = medians(calls, [int(u) for u in some[:60]], args.rounds)
    batch = {name: t / 256 for name, t in medians(calls, [some[:256]], args.rounds).items()}
    print(f"als: the same items {same:.3%}; {fast.report.layers[0].reason}")
    show("als, one user", one, 1e6, "us")
    show("als, per user of 256", batch, 1e6, "us")
    return {"als": {"same": same, "one": one, "batch": batch}}


if __name__ == "__main__":
    import sparselsh.torch

    main()
