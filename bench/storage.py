"""What fewer bits cost in accuracy and save in memory: weights and moments in bfloat16, second moments by rows.

usage: python -P bench/storage.py TRAIN TEST [--hidden 256] [--epochs 5] [--seeds 3] [--threads 2] [--json FILE]

Each way of storing is trained in a process of its own, for its peak of memory, once a seed; the ways take turns. P@k is
by every neuron. Figures are medians over the seeds, with the range of P@1.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

WAYS = {
    "float32": ({}, {}),
    "bfloat16 moments": ({}, {"state_dtype": "bfloat16"}),
    "second moment by rows": ({}, {"second_moment": "row"}),
    "bfloat16 m, second moment by rows": ({}, {"second_moment": "row", "state_dtype": "bfloat16"}),
    "bfloat16 weights": ({"dtype": "bfloat16"}, {}),
    "bfloat16 weights and moments": ({"dtype": "bfloat16"}, {"state_dtype": "bfloat16"}),
    "bfloat16 weights and m, second moment by rows":
        ({"dtype": "bfloat16"}, {"second_moment": "row", "state_dtype": "bfloat16"}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="ways whose names contain this")
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train(args, *WAYS[args.child[0]], int(args.child[1]))))
        return
    results = {way: [] for way in WAYS if not args.only or args.only in way}
    for seed in range(args.seeds):
        for way, runs in results.items():
            done = subprocess.run([sys.executable, "-P", __file__, *sys.argv[1:], "--child", way, str(seed)],
                                  stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout))
            print(way, runs[-1], file=sys.stderr)
    print("| stored | P@1 | range | P@5 | CPU s | peak MB, beyond the data |\n|---|--:|---|--:|--:|--:|")
    for way, runs in results.items():
        p1 = sorted(run["p_at_1"] for run in runs)
        p5, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("p_at_5", "cpu_s", "peak_mb"))
        print(f"| {way} | {statistics.median(p1):.1%} | {p1[0]:.1%} to {p1[-1]:.1%} | {p5:.1%} | {cpu:.1f} | "
              f"{peak:.0f} |")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


def train(args, layer, adam, seed):
    import resource

    import sparselsh as sl

    sl.set_num_threads(args.threads)
    (X, Y), (X_test, Y_test) = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    net = sl.Network([sl.Linear(X.shape[1], args.hidden, **layer), sl.LSHLinear(args.hidden, Y.shape[1], **layer)],
                     random_state=seed)
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    net.fit(X, Y, optimizer=sl.Adam(args.lr, schedule="linear", **adam), epochs=args.epochs, verbose=False)
    cpu, peak = time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ids, _ = net.topk(X_test, 5, exact=True)
    return {"p_at_1": sl.metrics.precision_at_k(Y_test, ids, 1), "p_at_5": sl.metrics.precision_at_k(Y_test, ids, 5),
            "cpu_s": cpu, "peak_mb": peak / 1024}


if __name__ == "__main__":
    main()
