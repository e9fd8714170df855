"""New tags of a trained Tagger: `add_tags` beside a training with all tags.

    python -P bench/new_tags.py --data debian-packages.jsonl.xz --task debtags --seeds 0 1 2
    python -P bench/new_tags.py --data FILE --task depends --validation --models FOLDER

The data are those of bench/text.py. A twentieth of the tags, drawn by the seed, is held back: the
first training knows the texts without these tags, but for texts that have no others. `add_tags`
then gets the texts with new tags, and all of their tags. With --without-texts the first training
does not know these texts at all. The training with all tags is the same with the same seed.

What is measured, on texts of the test:

- P@1 of texts without new tags ("old"), and of texts with some ("new").
- the fraction of the new tags that are among the five best of their texts ("R@5 of new").
- CPU seconds of `add_tags` and of the training with all tags, both from texts.

--validation asks the last tenth of the training texts, which no training then sees, in place of the
test. --models keeps trained models in a folder, from which later runs read them.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import versions
from text import read

import sparselsh as sl

SHARE = 0.05  # of the tags that are held back


def cases(args):
    """(texts, names) of the training, and of the questions."""
    train, test = read(args.data, args.task)
    if args.validation:
        cut = len(train[0]) * 9 // 10
        train, test = [part[:cut] for part in train], [part[cut:] for part in train]
    return train, test


def held_back(names, seed):
    """The tags that are new."""
    tags = sorted(set().union(*names))
    return set(np.random.default_rng(seed).permutation(tags)[:round(SHARE * len(tags))].tolist())


def trained(texts, names, seed, path):
    """(tagger, CPU seconds of its training); read from the file where there is one."""
    notes = path and path.with_suffix(".json")
    if path and notes.exists():
        return sl.load(path), json.loads(notes.read_text())
    start = time.process_time()
    tagger = sl.Tagger(random_state=seed).fit(texts, names)
    seconds = time.process_time() - start
    if path:
        tagger.save(path)
        notes.write_text(json.dumps(seconds))
    return tagger, seconds


def measures(tagger, texts, names, new):
    """P@1 of texts without and with new tags, and recall of new tags."""
    found = [[name for name, _ in row] for row in tagger.predict_topk(texts, 5)]
    is_new = np.array([bool(new.intersection(row)) for row in names])
    hits = np.array([row[0] in true for row, true in zip(found, names, strict=True)])
    pairs = [name in row for row, true in zip(found, names, strict=True)
             for name in new.intersection(true)]
    return {"old": hits[~is_new].mean(), "new": hits[is_new].mean(), "recall": np.mean(pairs),
            "n_old": int((~is_new).sum()), "n_new": int(is_new.sum())}


def run(args, seed):
    (texts, names), test = cases(args)
    new = held_back(names, seed)
    folder = args.models and Path(args.models)
    kind = f"{args.task}-{seed}{'-validation' if args.validation else ''}"

    def path(what):
        return folder and folder / f"{kind}-{what}.safetensors"

    all_tags, seconds_of_all = trained(texts, names, seed, path("all"))
    rows = [(text, [name for name in row if name not in new], bool(new.intersection(row)))
            for text, row in zip(texts, names, strict=True)]
    first = [(text, row) for text, row, is_new in rows
             if row and not (is_new and args.without_texts)]
    tagger, _ = trained(*zip(*first, strict=True), seed,
                        path("without-texts" if args.without_texts else "before"))
    before = measures(tagger, *test, new)
    more = [(text, row) for text, row in zip(texts, names, strict=True) if new.intersection(row)]

    start = time.process_time()
    tagger.add_tags(*map(list, zip(*more, strict=True)))
    seconds = time.process_time() - start
    return {"task": args.task, "seed": seed, "n_texts": len(more), "n_tags": len(new),
            "seconds": seconds, "seconds_of_all": seconds_of_all, "before": before,
            "added": measures(tagger, *test, new), "all": measures(all_tags, *test, new),
            "versions": versions()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", choices=["debtags", "depends"], default="debtags")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="do not use the test")
    parser.add_argument("--without-texts", action="store_true",
                        help="texts with new tags are new, too")
    parser.add_argument("--models", metavar="FOLDER", help="keep trained models here")
    parser.add_argument("--json", help="append each report to this file, a line each")
    args = parser.parse_args()
    sl.set_num_threads(args.threads)

    print(f"{'':8} {'':>6}  {'P@1 old':>20}  {'P@1 new':>13}  {'R@5 of new':>13}  {'CPU s':>13}")
    print(f"{'seed':8} {'texts':>6}  {'before':>6} {'added':>6} {'all':>6}  {'added':>6} {'all':>6}"
          f"  {'added':>6} {'all':>6}  {'added':>6} {'all':>6} times")
    reports = []
    for seed in args.seeds:
        r = run(args, seed)
        reports.append(r)
        shown(f"{seed}", r)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(r) + "\n")
    if len(reports) > 1:
        shown("mean", mean(reports))


def mean(values):
    """The mean of numbers in dicts of dicts, which have the same keys."""
    if isinstance(values[0], dict):
        return {key: mean([value[key] for value in values]) for key in values[0]
                if key not in ("task", "seed", "versions")}
    return statistics.fmean(values)


def shown(name, r):
    before, added, full = r["before"], r["added"], r["all"]
    print(f"{name:8} {r['n_texts']:6.0f}  {before['old']:6.3f} {added['old']:6.3f} "
          f"{full['old']:6.3f}  {added['new']:6.3f} {full['new']:6.3f}  {added['recall']:6.3f} "
          f"{full['recall']:6.3f}  {r['seconds']:6.2f} {r['seconds_of_all']:6.1f} "
          f"{r['seconds_of_all'] / r['seconds']:5.0f}", flush=True)


if __name__ == "__main__":
    main()
