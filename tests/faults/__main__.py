"""Try faults: python -P tests/faults [KIND ...] [--most N] [--only WORD]."""
import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults import harness

KINDS = (*harness.KINDS, "kernels")


def main():
    parser = argparse.ArgumentParser(description=harness.__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--most", type=int, help="faults per call; all by default")
    parser.add_argument("--only", default="", help="calls whose name contains this")
    parser.add_argument("--exactly", help="the call with this name")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        warnings.simplefilter("ignore")
        kind, name, options = json.loads(given.child)
        print(json.dumps(harness.KINDS[kind](name, **options)))
        sys.stdout.flush()
        os._exit(0)

    total = n_findings = 0
    with tempfile.TemporaryDirectory() as folder:
        preload = harness.compiled(folder)
        for kind in given.kinds or KINDS:
            options = {} if given.most is None else {"most": given.most}
            if kind == "kernels":
                n, findings = harness.run_kernels(preload, given.most) if preload else (0, [])
                print(f"{kind:12} {n:37,} tried, {len(findings)} findings", *findings, flush=True)
                total, n_findings = total + n, n_findings + len(findings)
                continue
            for name in harness.subjects(kind):
                if given.only not in name or given.exactly not in (None, name):
                    continue
                if kind in ("allocations", "kills") and preload is None:
                    print(f"{kind}: no compiler")
                    break
                library = preload if kind in ("allocations", "kills") else None
                n, findings = harness.run(kind, name, options, library, seconds=36_000)
                print(f"{kind:12} {name:28} {n:8,} tried, {len(findings)} findings", flush=True)
                for finding in findings[:20]:
                    print(f"    {finding}", flush=True)
                total, n_findings = total + n, n_findings + len(findings)
    print(f"{total:,} faults, {n_findings} findings")
    return n_findings > 0


if __name__ == "__main__":
    sys.exit(main())
