"""The sections of bench/report.py: what each one runs, and how the page shows it.

A section is a class with

    title, about    the heading, and the paragraph under it
    default         whether it runs without --full
    run(context)    returns the results, as JSON; raises Skipped where its data are absent
    page(results)   the tables as Markdown
    plot(results, path)    writes the chart; sections without one leave `chart` empty
    summary(results)       lines for the top of the page, or none
"""
import accuracy
import deep
import pretrained
import small
import train
from common import markdown_table
from rivals import report as retrieval_report


class Skipped(Exception):
    """A section cannot run; the message says why."""


class Section:
    default = True
    chart = ""

    def page(self, results):
        raise NotImplementedError

    def summary(self, results):
        return []


def required(context, name):
    """(train, test) of a data set; Skipped where it is absent."""
    paths = context.data(name)
    if paths is None:
        raise Skipped(f"the data set {name} is absent")
    return paths


def median(figure):
    return None if figure is None else figure["median"]


class Xmc(Section):
    title = "Many labels: training and serving"
    about = (
        "Every contender trains with its defaults on the same rows and answers the same test "
        "rows, each in its own process; processes take turns. Each one answers in the mode in "
        "which its users deploy it: PECOS from its saved folder with `is_predict_only=True`, "
        "Omikuji from its saved model with `densify_weights(0.05)`, napkinXC, fastText and "
        "sparselsh from their saved models. A single query runs on one thread, a batch on all. "
        "fastText sees which features a row has, not their values. The head of "
        "`bench/xmc_rivals.py` has the settings. Medians, with the smallest and the largest in "
        "brackets where there are several runs; sparselsh has one training per seed.")
    chart = "xmc"

    def run(self, context):
        sets = context.choose(["tib-core", "eurlex57k"], ["tib-core", "eurlex57k"],
                              ["tib-core", "eurlex57k", "diginetica"])
        options = context.choose(
            ["--rounds", 5], ["--seeds", 0, "--rounds", 1],
            ["--rounds", 7, "--repeat-below", 600])
        results = {}
        for name in sets:
            paths = context.data(name)
            if paths is not None:
                results[name] = context.script(
                    "accuracy.py", *paths, "--threads", context.threads, *options,
                    "--pecos-python", context.args.pecos_python,
                    "--rivals-python", context.args.rivals_python)
        if not results:
            raise Skipped(f"the data sets {' and '.join(sets)} are absent")
        return results

    def page(self, results):
        parts = []
        for name, document in results.items():
            shape = document["data"]
            parts += [f"### {name}", "",
                      f"{shape['train_rows']:,} training rows, {shape['test_rows']:,} test rows, "
                      f"{shape['features']:,} features, {shape['labels']:,} labels; per row "
                      f"{shape['values_per_row']:.1f} values and {shape['labels_per_row']:.1f} "
                      f"labels; {document['threads']} threads.", "",
                      accuracy.table(document), ""]
        return "\n".join(parts)

    def plot(self, results, path):
        accuracy.plot(results, path)

    def summary(self, results):
        lines = []
        for name, document in results.items():
            ours = document["contenders"].get("sparselsh")
            rivals = {accuracy.TITLES[key]: c for key, c in document["contenders"].items()
                      if key != "sparselsh"}
            if not ours or not rivals:
                continue
            best = max(rivals, key=lambda key: rivals[key]["p_at_1"]["median"])
            fast = min(rivals, key=lambda key: rivals[key]["single_wall_us"]["median"])
            lines.append(
                f"- {name}: P@1 of {100 * median(ours['p_at_1']):.1f} % after "
                f"{median(ours['train_cpu_s']):.1f} CPU seconds of training; the most accurate "
                f"rival, {best}, has {100 * median(rivals[best]['p_at_1']):.1f} % after "
                f"{median(rivals[best]['train_cpu_s']):.1f}. A single query takes "
                f"{median(ours['single_wall_us']):,.0f} µs; the fastest rival, {fast}, takes "
                f"{median(rivals[fast]['single_wall_us']):,.0f} and has a P@1 of "
                f"{100 * median(rivals[fast]['p_at_1']):.1f} %.")
        return lines


class Training(Section):
    title = "Training against PyTorch"
    about = (
        "Networks of the same shape from random weights, without the refinement of the recipe, so "
        "that like is compared with like. `torch-dense` computes every label, `torch-sampled` the "
        "labels of a batch and random ones, 4,096 together, `torch-adaptive` is PyTorch's "
        "adaptive softmax; `sparselsh-all` computes every label. All have the same learning rate "
        "and schedule. Each contender runs in a process of its own; they take turns.")
    chart = "training"

    def run(self, context):
        paths = required(context, "s20k")
        options = context.choose(
            ["--repeats", 3, "--max-batches", 8],
            ["--epochs", 1, "--hidden", 32, "--max-batches", 2],
            ["--repeats", 5, "--max-batches", 16])
        results = {"s20k": context.script("train.py", *paths, "--threads", context.threads,
                                          *options)}
        if context.full:
            if amz := context.data("amz"):
                results["amz"] = context.script(
                    "train.py", *amz, "--threads", context.threads, "--epochs", 1, "--hidden", 128,
                    "--repeats", 3, "--max-batches", 8, "--only", "sparselsh,torch-dense")
            results["steps"] = context.script("train.py", "--step-cost", "--hidden", 128,
                                              "--steps", 90, "--threads", context.threads)
        return results

    def page(self, results):
        parts = []
        for name, document in results.items():
            if name != "steps":
                parts += [f"### {name}", "",
                          f"Epochs: {document['epochs']}, hidden units: {document['hidden']}, "
                          f"rows per batch: {document['batch_size']}, threads: "
                          f"{document['threads']}.", "",
                          train.table(document), ""]
        if "steps" in results:
            rows = [[f"{step['labels']:,}", f"{step['median_ms']:.1f}", f"{step['mean_ms']:.1f}",
                     f"{step['first_ms']:.0f}"] for step in results["steps"]["steps"]]
            parts += ["### A step by number of labels", "", markdown_table(
                ["labels", "CPU ms per step, median", "mean, with rebuilds", "first step"],
                rows), ""]
        return "\n".join(parts)

    def plot(self, results, path):
        train.plot(results["s20k"], path)

    def summary(self, results):
        lines = []
        for name, document in results.items():
            contenders = document.get("contenders", {})
            ours = contenders.get("sparselsh")
            rivals = [key for key in ("torch-dense", "torch-sampled") if key in contenders]
            if ours and rivals:
                times = " and ".join(
                    f"{median(contenders[key]['cpu_s']) / median(ours['cpu_s']):.1f} times "
                    f"({key.removeprefix('torch-')})" for key in rivals)
                lines.append(f"- {name}: PyTorch takes {times} the CPU seconds of sparselsh for as "
                             "many epochs of a network of the same shape.")
        return lines


class Scaling(Section):
    title = "Threads"
    about = (
        "Two networks that differ only in their number of threads train in turns, in one process. "
        "Before and after each pair, as many matrix products as there are threads are timed in "
        "NumPy: they tell whether the cores were available. A pair is quiet where the products "
        "gained at least 0.9 of the number of threads.")

    def run(self, context):
        if context.threads < 2:
            raise Skipped("it needs two threads or more")
        pairs = context.choose(12, 2)
        results = {"s20k": context.script("scaling.py", required(context, "s20k")[0], "--threads",
                                          context.threads, "--pairs", pairs)}
        if context.full and (amz := context.data("amz")):
            results["amz"] = context.script("scaling.py", amz[0], "--threads", context.threads,
                                            "--pairs", pairs)
        return results

    def page(self, results):
        rows = []
        for name, document in results.items():
            for group, figures in document["groups"].items():
                gain, product = figures["gain"], figures["product_gain"]
                rows.append([
                    name, group, gain["n"], accuracy.number(figures["one"], 0),
                    accuracy.number(figures["several"], 0), accuracy.number(gain, 2),
                    accuracy.number(product, 2)])
        threads = next(iter(results.values()))["threads"]
        return markdown_table(
            ["data", "pairs", "number", "samples per second, 1 thread",
             f"samples per second, {threads} threads", "gain", "gain of products"], rows, left=2)

    def summary(self, results):
        gains = {name: document["groups"]["all"]["gain"]["median"]
                 for name, document in results.items()}
        return [f"- {name}: {results[name]['threads']} threads train {gain:.2f} times as many "
                "samples per second as one." for name, gain in gains.items()]


class Retrieval(Section):
    title = "Retrieval: the neurons with the largest inner products"
    about = (
        "The output layer of a network with one hidden layer of 128 ReLU units; queries are the "
        "hidden activations of test rows. All contenders run in one process and take turns; "
        "[bench/README.md](../bench/README.md) says how each is set up. For each one the table "
        'has the fastest setting of its sweep that reaches the recall; "own setting" is what '
        '`fit` chose without these queries. "centred" means that the mean neuron was subtracted '
        "first, which changes no ranking.")
    chart = "retrieval"

    def run(self, context):
        required(context, "tib-core")
        layers = []
        for name in context.choose(["tib-core"], ["tib-core"], ["tib-core", "enwiki-cbow"]):
            if paths := context.data(name):
                layers.append(context.path(f"{name}.npz"))
                context.script("make_layers.py", *paths, layers[-1], "--threads", context.threads,
                               "--epochs", context.choose(5, 1), json_file=False)
        options = context.choose(
            # voyager searches raw weights so slowly that it would take minutes
            ["--repeats", 3, "--only",
             "exact,faiss,hnswlib,voyager M=32 (centred),scann,sparselsh"],
            ["--repeats", 1, "--queries", 20, "--only",
             "exact,faiss flat,faiss IVF (raw),hnswlib M=16 (raw),scann AH (raw),sparselsh"],
            ["--repeats", 5, "--recalls", 0.9, 0.95, 0.99])
        return context.script("retrieval.py", *layers, "--threads", 1, *options, "--rehash")

    def page(self, results):
        setup = results["setup"]
        parts = [retrieval_report.legend(setup["k"], setup["by"], setup["threads"]),
                 f"BLAS: {' and '.join(setup['blas'])}.", ""]
        for name, layer in results["layers"].items():
            contenders = layer["contenders"]
            for target in setup["recalls"]:
                parts += [f"### {name}, recall@{setup['k']} of {target:g}", "",
                          f"{layer['neurons']:,} neurons x {layer['dimensions']}, "
                          f"{layer['queries']:,} queries.", "",
                          retrieval_report.as_markdown(
                              retrieval_report.rows(contenders, target, setup["by"])), ""]
            notes = retrieval_report.notes(contenders, results["rehash"].get(name))
            parts += [*notes, *([""] if notes else [])]
        parts += [f"- {name}: {why}" for name, why in results["left_out"].items()]
        return "\n".join(parts)

    def plot(self, results, path):
        setup = results["setup"]
        retrieval_report.plot(path, results["layers"], setup["by"], setup["k"])

    def summary(self, results):
        setup = results["setup"]
        target, lines = setup["recalls"][0], []
        for name, layer in results["layers"].items():
            best = {}
            for contender in layer["contenders"]:
                if "failed" in contender or contender["target"] not in (None, target):
                    continue
                points = {mode: retrieval_report.cheapest(contender, target, mode, setup["by"])
                          for mode in ("one", "batch")}
                for mode, point in points.items():
                    if point is not None:
                        side = "sparselsh" if contender["package"] == "sparselsh" else "rival"
                        figure = (point[mode]["wall_us"], contender["name"])
                        best[side, mode] = min(best.get((side, mode), figure), figure)
            if len(best) == 4:
                ours, rival = best["sparselsh", "one"], best["rival", "one"]
                ours_batch, rival_batch = best["sparselsh", "batch"], best["rival", "batch"]
                lines.append(
                    f"- The best {setup['k']} of {layer['neurons']:,} neurons ({name}) at a recall "
                    f"of {target:g}: {ours[0]:.1f} µs per single query, the fastest rival "
                    f"({rival[1]}) {rival[0]:.1f}; in batches {ours_batch[0]:.1f}, the fastest "
                    f"rival ({rival_batch[1]}) {rival_batch[0]:.1f}.")
        return lines


class Pretrained(Section):
    title = "Pretrained networks"
    about = (
        "`bench/make_pretrained.py` trains an MLP with PyTorch; `bench/pretrained.py` converts it "
        "and queries it, PyTorch and ONNX Runtime in turns, in one process with as many threads. "
        '"same best output" compares with PyTorch in float32.')

    def run(self, context):
        sets = {"tib-core": (["--sampled", 4096, "--lr", "3e-3"], [])}
        if context.full:
            sets["enwiki-cbow"] = sets["tib-core"]
            sets["mnist"] = (
                ["--hidden", 8192, 8192, "--sampled", 0, "--dense-input", "--scale", 255,
                 "--batch-size", 512, "--lr", "5e-4"],
                ["--scale", 255, "--error", 0.4, "-k", 1])
        required(context, "tib-core")
        results = {}
        for name, (training, serving) in sets.items():
            if paths := context.data(name):
                epochs = 1 if name == "mnist" else context.choose(6, 1)
                model = context.path(f"{name}.pt")
                context.script("make_pretrained.py", *paths, model, "--epochs", epochs, *training,
                               json_file=False)
                rounds = context.choose([], ["--rounds", 1, "--queries", 10,
                                             "--quality-rows", 200])
                results[name] = context.script(
                    "pretrained.py", model, *paths, "--threads", 1, "--storage", "float32",
                    "bfloat16", "int8", *rounds, *serving)
        return results

    def page(self, results):
        parts = []
        for name, document in results.items():
            parts += [f"### {name}", "", pretrained.table(document, reports=False)]
        return "\n".join(parts)

    def summary(self, results):
        lines = []
        for name, document in results.items():
            contenders = document["contenders"]
            times = {key: c["single_wall_us"]["median"] for key, c in contenders.items()}
            rivals = [key for key in times if not key.startswith("sparselsh")]
            if rivals and "sparselsh float32" in times:
                fast = min(rivals, key=times.get)
                lines.append(
                    f"- A network of PyTorch with {document['shapes'][-1][0]:,} outputs ({name}), "
                    f"converted, answers a single query in {times['sparselsh float32']:.1f} µs; "
                    f"the fastest rival, {fast}, takes {times[fast]:.1f}.")
        return lines


class Deep(Section):
    title = "Deep sparse networks"
    about = (
        "MNIST: 784-1000x5-10 at a density of 7.5 % (batches of 1,280, one cycle of 5 epochs, "
        "AdamW) and 784-8192-8192-10 at 5 % and 1 % (batches of 512), beside the same networks in "
        "PyTorch. The multiply-adds are those of each layer, counted by `Network.profile`; in the "
        "first network, layers that are sparse on both sides hash even where another plan would "
        "be faster.")
    chart = "deep"

    def run(self, context):
        paths = required(context, "mnist")
        options = ["--threads", context.threads]
        epochs = ["--epochs", 1] if context.quick else []
        results = {"mnist": context.script("deep.py", "mnist", *paths, *options, *epochs)}
        wide = context.choose(["--epochs", 1, "--max-batches", 8],
                              ["--epochs", 1, "--max-batches", 1, "--only", "sparse 1 %,dense"],
                              ["--epochs", 2])
        results["wide"] = context.script("deep.py", "wide", *paths, *options, *wide)
        if context.full and (s20k := context.data("s20k")):
            results["slide"] = context.script("deep.py", "slide", *s20k, *options)
        return results

    def page(self, results):
        titles = {"mnist": "784-1000x5-10", "wide": "784-8192-8192-10",
                  "slide": "s20k with SLIDE's settings (DWTA, K = 6, L = 50, 0.5 %)"}
        return "\n".join(f"### {titles[name]}\n\n{document['threads']} threads.\n\n"
                         f"{deep.table(document)}\n" for name, document in results.items())

    def plot(self, results, path):
        deep.plot(results["mnist"], path)


class Small(Section):
    title = "Networks too small to gain"
    about = (
        "MLPs with random weights and dense inputs: what converting costs where there is nothing "
        'to gain. The conversion leaves such layers dense. "sparselsh dense" is the network '
        "without calibration.")

    def run(self, context):
        return context.script("small.py", "--threads", 1, "--rounds", context.choose(15, 2))

    def page(self, results):
        return small.table(results)


class Demo(Section):
    title = "The demo"
    about = (
        "`sparselsh demo` trains on the standard library of the Python that runs it, with hashing "
        "and without, in one process.")

    def run(self, context):
        options = ["--rows", 3000, "--epochs", 1] if context.quick else []
        return context.script("-m sparselsh", "demo", "--threads", context.threads, *options)

    def page(self, results):
        rows = []
        for name, figures in (("hashed", results), ("every neuron", results.get("dense"))):
            if figures is not None:
                rows.append([
                    name, *(f"{100 * figures[f'p_at_{k}']:.1f}" for k in (1, 3, 5)),
                    f"{figures['train_cpu_seconds']:.1f}", f"{figures['train_seconds']:.1f}"])
        task = results["task"]
        table = markdown_table(["network", "P@1, %", "P@3, %", "P@5, %", "training, CPU s",
                                "wall s"], rows)
        return (f"{task['rows']:,} training rows, {task['test_rows']:,} test rows, "
                f"{task['features']:,} features, {task['classes']:,} identifiers; one run."
                f"\n\n{table}")


class Recipe(Section):
    title = "What each part of the recipe gives"
    about = (
        "Networks with random first weights or weights of the data, after some epochs, before and "
        "after `refine`; then the number of negatives per row. [accuracy.md](accuracy.md) "
        "explains the recipe. CPU seconds are those of the training up to there.")
    default = False

    def run(self, context):
        results = {}
        for name in ("tib-core",):
            options = ["--hidden", 32, "--negatives", 10] if context.quick else []
            results[name] = context.script("recipe.py", *required(context, name), "--threads",
                                           context.threads, *options)
        return results

    def page(self, results):
        parts = []
        measures = [("p_at_1", "P@1, %"), ("p_at_5", "P@5, %"), ("psp_at_5", "PSP@5, %")]
        for name, document in results.items():
            def cells(line):
                return [*(f"{100 * line[key]:.1f}" for key, _ in measures), f"{line['cpu_s']:.1f}"]

            titles = [title for _, title in measures]
            parts += [f"### {name}", "", markdown_table(
                ["first weights", "epochs", "refined", *titles, "CPU s"],
                [[line["weights"], line["epochs"], "yes" if line["refined"] else "no", *cells(line)]
                 for line in document["cases"]]), "", markdown_table(
                ["negatives per row", *titles, "CPU s of refining"],
                [[line["negatives"], *cells(line)] for line in document["negatives"]]), ""]
        return "\n".join(parts)


class Storage(Section):
    title = "Weights and moments in fewer bits"
    about = (
        "Each way of storing is trained in a process of its own, once per seed; the ways take "
        "turns. P@k by every neuron; the peak of memory is that beyond the data.")
    default = False

    def run(self, context):
        options = ["--hidden", 32, "--epochs", 1, "--seeds", 1] if context.quick else [
            "--hidden", 128]
        return {"s20k": context.script("storage.py", *required(context, "s20k"), "--threads",
                                       context.threads, *options)}

    def page(self, results):
        rows = []
        for name, document in results.items():
            for way, figures in document.items():
                rows.append([name, way, accuracy.number(figures["p_at_1"], 1, 100),
                             accuracy.number(figures["p_at_5"], 1, 100),
                             accuracy.number(figures["cpu_s"]),
                             accuracy.number(figures["peak_mb"], 0)])
        return markdown_table(["data", "stored", "P@1, %", "P@5, %", "training, CPU s",
                               "peak memory, MB"], rows, left=2)


class Kernels(Section):
    title = "What bounds a training step"
    about = (
        "CPU time of every call into the compiled core during a training on one thread, and what "
        'it has to compute and to move. "reached" is the fraction of the bound; the head of '
        "`bench/roofline.py` says how it is computed.")
    default = False

    def run(self, context):
        options = ["--steps", 5, "--hidden", 32] if context.quick else []
        return {"s20k": context.script("roofline.py", required(context, "s20k")[0], *options)}

    def page(self, results):
        parts = []
        for name, document in results.items():
            rows = [[line["kernel"], line["what"], f"{line['ms']:.2f}",
                     f"{100 * line['fraction']:.1f}", f"{line['mflop']:.1f}",
                     f"{line['mbyte']:.1f}",
                     line["bound_by"] or "-",
                     f"{100 * line['of_bound']:.0f}" if line["bound_by"] else "-"]
                    for line in document["kernels"]]
            parts += [f"{name}: {document['rate'] / 1e9:.0f} GF/s, "
                      f"{document['bandwidth'] / 1e9:.1f} GB/s in sequence, "
                      f"{document['row_bandwidth'] / 1e9:.1f} GB/s by rows; one thread, "
                      f"{document['steps']} steps.", "", markdown_table(
                          ["kernel", "what", "ms per step", "% of kernels", "Mflop", "MB",
                           "bound by", "reached, %"], rows, left=2), ""]
        return "\n".join(parts)


SECTIONS = {"xmc": Xmc(), "training": Training(), "scaling": Scaling(), "retrieval": Retrieval(),
            "pretrained": Pretrained(), "deep": Deep(), "small": Small(), "demo": Demo(),
            "recipe": Recipe(), "storage": Storage(), "kernels": Kernels()}
