"""Maximum inner product search over trained layers: sparselsh, exact search, ANN libraries.

usage: python -P bench/retrieval.py LAYER.npz [LAYER.npz ...] [--threads 1] [--k 5]
           [--recalls 0.95 0.99] [--repeats 3] [--queries 200] [--only NAME,...] [--by wall|cpu]
           [--json OUT] [--plot OUT.png] [--markdown OUT.md] [--cache DIR] [--blas-core NAME]
           [--rehash] [--list]

bench/make_layers.py makes the layers; bench/README.md says what is measured and how.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    cpuinfo,
    load_average,
    machine,
    restart_with,
    thread_environment,
    versions,
    write_json,
)


def main():
    """Run all contenders and report."""
    args = arguments()
    restart_with(environment(args.threads, args.blas_core))

    # these read the environment when they are loaded
    import threadpoolctl
    from rivals import catalogue, measure, ours, report
    from rivals.contender import Layer

    import sparselsh as sl

    contenders, left_out = catalogue(args.threads, args.k, args.recalls)
    for name, why in left_out.items():
        print(f"{name}: {why}")
    if args.only:
        words = [name.strip() for name in args.only.split(",")]
        contenders = [c for c in contenders if any(word in c.name for word in words)]
    if args.list or not contenders:
        print(*[c.name for c in contenders], sep="\n")
        return
    sl.set_num_threads(args.threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(args.threads)

    document = {"setup": setup(args), "left_out": left_out, "layers": {}, "rehash": {}}
    texts = [describe(document["setup"]), report.legend(args.k, args.by, args.threads)]
    print(texts[0])
    with threadpoolctl.threadpool_limits(args.threads):
        for path in args.layers:
            layer = Layer(path)
            title = (f"{layer.name}: {layer.W.shape[0]:,} neurons x {layer.W.shape[1]}, "
                     f"{len(layer.Q):,} queries")
            print(title)
            rehash = ours.rehash(layer, args.threads) if args.rehash else None
            if rehash:
                document["rehash"][layer.name] = rehash
            results = measure.run_layer(layer, contenders, repeats=args.repeats,
                                        n_queries=args.queries, cache=args.cache)
            document["layers"][layer.name] = {"neurons": layer.W.shape[0],
                                              "dimensions": layer.W.shape[1],
                                              "queries": len(layer.Q), "contenders": results}
            document["setup"]["load_after"] = load_average()
            texts += present(report, title, results, rehash, args)
            if args.json:  # after each layer, because a run takes long
                write_json(args.json, document)
    if args.markdown:
        Path(args.markdown).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    if args.plot:
        report.plot(args.plot, document["layers"], args.by, args.k)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help=".npz files with W, bias, H and Q")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.95])
    parser.add_argument("--repeats", type=int, default=3, help="rounds of timing")
    parser.add_argument("--queries", type=int, default=200, help="single queries per round")
    parser.add_argument("--only",
                        help="contenders whose names contain one of these, separated by commas")
    parser.add_argument("--by", choices=("wall", "cpu"), default="wall",
                        help="time by which settings are chosen and compared; "
                             "cpu on a machine with other work")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    parser.add_argument("--markdown")
    parser.add_argument("--cache", help="folder for the built indexes of rivals; build times are "
                                        "then those of the first run")
    parser.add_argument("--blas-core", default="auto",
                        help='OPENBLAS_CORETYPE; "" leaves the environment as it is')
    parser.add_argument("--rehash", action="store_true",
                        help="also time LSHIndex.update of 3,000 rows")
    parser.add_argument("--list", action="store_true", help="print the names of the contenders")
    args = parser.parse_args()
    if not args.layers and not args.list:
        parser.error("give at least one layer")
    return args


def environment(threads, blas_core):
    """The environment that the libraries read when they are loaded."""
    variables = thread_environment(threads) | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    if blas_core == "auto":
        # OpenBLAS may choose its AVX2 kernels (by the environment, or on processors newer than
        # itself); exact search is then a third slower than it has to be
        blas_core = "SkylakeX" if "avx512bw" in cpuinfo("flags") else None
    return variables | ({"OPENBLAS_CORETYPE": blas_core} if blas_core else {})


def setup(args):
    """What the figures depend on."""
    import threadpoolctl

    blas = [f"{info['internal_api']} {info['version']} {info.get('architecture', '')}"
            for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    return {"machine": machine(), "versions": versions(), "blas": blas, "threads": args.threads,
            "k": args.k, "repeats": args.repeats, "queries": args.queries, "by": args.by,
            "recalls": args.recalls, "load_before": load_average()}


def describe(setup):
    """The machine in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    return (f"{setup['machine']['processor']}, {setup['machine']['cores']} cores, "
            f"{setup['threads']} thread(s) used; {packages}; BLAS {' and '.join(setup['blas'])}")


def present(report, title, results, rehash, args):
    """Print the tables of a layer; return them as Markdown."""
    texts = [f"## {title}"]
    for target in args.recalls:
        lines = report.rows(results, target, args.by)
        print(f"\n{title}, recall@{args.k} of {target:g}\n{report.as_text(lines)}\n", flush=True)
        texts += [f"### recall@{args.k} of {target:g}", report.as_markdown(lines)]
    notes = report.notes(results, rehash)
    if notes:
        print(*notes, sep="\n")
        texts.append("\n".join(notes))
    return texts


if __name__ == "__main__":
    main()
