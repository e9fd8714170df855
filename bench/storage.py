"""What fewer bits cost in accuracy and save in memory.

usage: python -P bench/storage.py TRAIN TEST [--hidden 256] [--epochs 5] [--seeds 3] [--threads 2]
           [--json FILE]

Weights and moments in bfloat16, one second moment per row. Each way of storing is trained in a
process of its own, for its peak of memory, once per seed; the ways take turns. P@k is by every
neuron. Figures are medians over the seeds, with the smallest and the largest.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    child_environment,
    markdown_table,
    peak_megabytes,
    run_child,
    spread,
    write_json,
)

ROW = {"second_moment": "row"}
BFLOAT16_MOMENTS = {"state_dtype": "bfloat16"}
BFLOAT16 = {"dtype": "bfloat16"}
WAYS = {  # name: (options of the layers, options of Adam)
    "float32": ({}, {}),
    "bfloat16 moments": ({}, BFLOAT16_MOMENTS),
    "second moment per row": ({}, ROW),
    "bfloat16 m, second moment per row": ({}, ROW | BFLOAT16_MOMENTS),
    "bfloat16 weights": (BFLOAT16, {}),
    "bfloat16 weights and moments": (BFLOAT16, BFLOAT16_MOMENTS),
    "bfloat16 weights and m, second moment per row": (BFLOAT16, ROW | BFLOAT16_MOMENTS),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="ways whose names contain this")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, seed = args.child
        print(json.dumps(train(args, *WAYS[way], int(seed))))
        return

    runs = {way: [] for way in WAYS if not args.only or args.only in way}
    for seed in range(args.seeds):
        for way, reports in runs.items():
            command = [sys.executable, "-P", __file__, *sys.argv[1:], "--child", way, str(seed)]
            reports.append(run_child(command, child_environment(args.threads, passive=False)))
            print(way, reports[-1], file=sys.stderr, flush=True)
    document = {way: {key: spread(report[key] for report in reports) for key in reports[0]}
                for way, reports in runs.items()}
    rows = []
    for way, figures in document.items():
        p1 = figures["p_at_1"]
        rows.append([way, f"{100 * p1['median']:.1f}",
                     f"{100 * p1['min']:.1f} to {100 * p1['max']:.1f}",
                     f"{100 * figures['p_at_5']['median']:.1f}",
                     f"{figures['cpu_s']['median']:.1f}", f"{figures['peak_mb']['median']:.0f}"])
    print(markdown_table(["stored", "P@1, %", "min to max", "P@5, %", "CPU s",
                          "peak MB beyond the data"], rows))
    if args.json:
        write_json(args.json, document)


def train(args, layer, adam, seed):
    sl.set_num_threads(args.threads)
    (X, Y), (X_test, Y_test) = (sl.datasets.read_xmc(path) for path in (args.train, args.test))
    net = sl.Network([sl.Linear(X.shape[1], args.hidden, **layer),
                      sl.LSHLinear(args.hidden, Y.shape[1], **layer)], random_state=seed)
    before, cpu = peak_megabytes(), time.process_time()
    net.fit(X, Y, optimizer=sl.Adam(args.lr, schedule="linear", **adam), epochs=args.epochs,
            verbose=False)
    cpu, peak = time.process_time() - cpu, peak_megabytes() - before
    ids, _ = net.topk(X_test, 5, exact=True)
    scores = {f"p_at_{k}": sl.metrics.precision_at_k(Y_test, ids, k) for k in (1, 5)}
    return scores | {"cpu_s": cpu, "peak_mb": peak}


if __name__ == "__main__":
    main()
