"""Maximum inner product search over the neurons of trained layers: sparselsh, exact search and ANN libraries.

usage: python bench/retrieval.py LAYER.npz [LAYER.npz ...] [--threads 1] [--k 5] [--recalls 0.95 0.99]
           [--repeats 3] [--queries 200] [--only NAME,...] [--by wall|cpu] [--json OUT] [--plot OUT.png]
           [--markdown OUT.md] [--cache DIR] [--blas-core NAME] [--rehash] [--list]

bench/make_layers.py makes the layers; bench/README.md says what is measured and how.
"""
import argparse
import json
import os
import platform
import sys


def main():
    """Run all contenders and report."""
    args = arguments()
    set_environment(args.threads, args.blas_core)
    # what reads the environment when it is loaded must come after it is set
    import numpy as np
    import threadpoolctl
    from rivals import catalogue, measure, ours, report
    from rivals.contender import Layer

    import sparselsh as sl

    contenders, complaints = catalogue(args.threads, args.k, args.recalls)
    print(*complaints, sep="\n", end="\n" if complaints else "")
    if args.only:
        wanted = [name.strip() for name in args.only.split(",")]
        contenders = [c for c in contenders if any(name in c.name for name in wanted)]
    if args.list or not contenders:
        print(*[c.name for c in contenders], sep="\n")
        return
    sl.set_num_threads(args.threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(args.threads)

    document = {"machine": machine(args), "layers": {}, "rehash": {}}
    texts = [describe(document["machine"]), report.legend(args.k, args.by, args.threads)]
    print(texts[0])
    with threadpoolctl.threadpool_limits(args.threads):
        for path in args.layers:
            layer = Layer(path)
            title = f"{layer.name}: {layer.W.shape[0]:,} neurons x {layer.W.shape[1]}, {len(layer.Q):,} queries"
            print(title)
            if args.rehash:
                document["rehash"][layer.name] = spent = ours.rehash(layer, args.threads)
                words = ", ".join(f"{name} {ms:.1f}" for name, ms in spent["cpu_ms"].items())
                print(f"  update of {spent['rows']} rows, CPU ms: {words}")
            results = measure.run_layer(layer, contenders, repeats=args.repeats, n_queries=args.queries,
                                        cache=args.cache)
            document["layers"][layer.name] = results
            document["machine"]["load_after"] = os.getloadavg()
            texts += present(report, title, results, document["rehash"].get(layer.name), args)
            if args.json:  # after each layer: a run takes long
                with open(args.json, "w") as file:
                    json.dump(document, file, indent=1, default=lambda x: x.item() if isinstance(x, np.generic) else x)
    if args.markdown:
        with open(args.markdown, "w") as file:
            file.write("\n\n".join(texts) + "\n")
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
    parser.add_argument("--queries", type=int, default=200, help="queries of a pass one at a time")
    parser.add_argument("--only", help="contenders whose names contain one of these, separated by commas")
    parser.add_argument("--by", choices=("wall", "cpu"), default="wall",
                        help="time by which settings are chosen and compared; cpu on a machine with other work")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    parser.add_argument("--markdown")
    parser.add_argument("--cache", help="folder for built indexes of rivals; their build times are then old ones")
    parser.add_argument("--blas-core", default="auto", help="OPENBLAS_CORETYPE; \"\" leaves the environment as it is")
    parser.add_argument("--rehash", action="store_true", help="also time sparselsh's update of 3,000 rows")
    parser.add_argument("--list", action="store_true", help="print the names of the contenders")
    args = parser.parse_args()
    if not args.layers and not args.list:
        parser.error("give at least one layer")
    return args


def set_environment(threads, blas_core):
    """Start again with the environment that the libraries read when they are loaded."""
    wanted = {"OMP_WAIT_POLICY": "passive",  # threads that spin while they wait would be charged to the next contender
              "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
              "TF_CPP_MIN_LOG_LEVEL": "2"}
    if blas_core == "auto":
        # OpenBLAS may take its AVX2 kernels (by the environment, or on processors newer than itself), and is then
        # a third slower than exact search has to be
        blas_core = "SkylakeX" if "avx512bw" in _cpuinfo("flags") else None
    if blas_core:
        wanted["OPENBLAS_CORETYPE"] = blas_core
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def machine(args):
    """What the figures depend on."""
    from importlib import metadata

    import threadpoolctl

    packages = {}
    for name in ("numpy", "faiss-cpu", "hnswlib", "scann", "voyager", "sparselsh-nn"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    blas = [f"{i['internal_api']} {i['version']} {i.get('architecture', '')}" for i in threadpoolctl.threadpool_info()
            if i["user_api"] == "blas"]
    return {"cpu": _cpuinfo("model name") or platform.processor(), "cores": os.cpu_count(), "threads": args.threads,
            "python": platform.python_version(), "packages": packages, "blas": blas, "k": args.k,
            "repeats": args.repeats, "queries": args.queries, "load_before": os.getloadavg()}


def _cpuinfo(key):
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""


def describe(m):
    """The machine in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items() if version)
    return (f"{m['cpu']}, {m['cores']} cores, {m['threads']} thread(s) used; load {m['load_before'][0]:.1f} at the "
            f"start; Python {m['python']}, {packages}; BLAS {' and '.join(m['blas'])}")


def present(report, title, results, rehash, args):
    """Print the tables of a layer; return them as markdown."""
    texts = [f"## {title}"]
    for target in args.recalls:
        lines = report.rows(results, target, args.by)
        print(f"\n{title}, recall@{args.k} of {target:g}\n{report.as_text(lines)}\n", flush=True)
        texts += [f"### recall@{args.k} of {target:g}", report.as_markdown(lines)]
    notes = [f"- {r['name']}: {r.get('failed') or r['note']}" for r in results if r.get("failed") or r.get("note")]
    if rehash:
        notes.append(f"- update of {rehash['rows']} rows, CPU ms: "
                     + ", ".join(f"{name} {ms:.1f}" for name, ms in rehash["cpu_ms"].items()))
    if notes:
        print(*notes, sep="\n")
        texts.append("\n".join(notes))
    return texts


if __name__ == "__main__":
    main()
