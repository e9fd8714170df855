"""Tables and the plot of bench/retrieval.py."""

HEAD = ["contender", "build s (CPU)", "B/neuron", "one: us (CPU)", "x ours", "exact x", "batch: us (CPU)", "x ours",
        "exact x", "recall", "setting: one; batch", "computed"]
MODES = ("one", "batch")


def cheapest(result, target, mode, by):
    """The point of a contender that reaches the recall in least time, or None."""
    name = "recall_one" if mode == "one" else "recall"
    points = [p for p in result["points"] if p[name] >= target]
    return min(points, key=lambda p: p[mode][f"{by}_us"], default=None)


def rows(results, target, by):
    """The table of one layer at one recall, as lists of words."""
    results = [r for r in results if "failed" not in r and r["target"] in (None, target)]
    ours, exact = (_times(results, name, target, by) for name in ("sparselsh ", "exact (NumPy"))
    lines = []
    for result in results:
        best = {mode: cheapest(result, target, mode, by) for mode in MODES}
        reached = all(best.values())
        if not reached and not any(best.values()) and result["name"].endswith("own setting"):
            # it chose this setting for the target on other queries; what it gives on these is the news
            best, reached = dict.fromkeys(MODES, result["points"][0]), True
        line = [result["name"], f"{result['build']['wall']:.1f} ({result['build']['cpu']:.1f})",
                _number(result["build"]["bytes"])]
        for mode in MODES:
            if best[mode] is None:
                line += ["not reached", "-", "-"]
                continue
            time = best[mode][mode][f"{by}_us"]
            line += [f"{best[mode][mode]['wall_us']:.1f} ({best[mode][mode]['cpu_us']:.1f})",
                     _ratio(time, ours[mode]), _ratio(exact[mode], time)]
        if any(best.values()):
            line += [_both([f"{best[m][k]:.3f}" if best[m] else "-" for m, k in zip(MODES, ("recall_one", "recall"),
                                                                                     strict=True)]),
                     _both([_setting(best[m]) for m in MODES]), _shares(best)]
        else:
            top = max(result["points"], key=lambda p: p["recall"], default=None)
            line += [f"at most {top['recall']:.3f}" if top else "none", _setting(top), "-"]
        lines.append(line)
    return lines


def _times(results, prefix, target, by):
    # "sparselsh 0.95" comes before "sparselsh 0.95 own setting": rivals get their best setting too
    result = next((r for r in results if r["name"].startswith(prefix)), None)
    points = {mode: result and cheapest(result, target, mode, by) for mode in MODES}
    return {mode: point and point[mode][f"{by}_us"] for mode, point in points.items()}


def _ratio(a, b):
    return "-" if a is None or b is None else f"{a / b:.2f}"


def _number(value):
    return "-" if value is None else f"{value:.0f}"


def _both(words):
    return words[0] if words[0] == words[1] else "; ".join(words)


def _setting(point):
    if point is None:
        return "-"
    return " ".join(f"{name}={value}" for name, value in point["setting"].items()) or "-"


def _shares(best):
    shares = []
    for i, mode in enumerate(MODES):
        share = best[mode] and best[mode]["share"]
        share = share[i] if isinstance(share, tuple | list) else share
        shares.append("-" if share is None else f"{share:.2%}")
    return _both(shares)


def as_text(lines):
    """Aligned columns."""
    table = [HEAD, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    left = (0, len(HEAD) - 2)  # words; the rest are numbers
    return "\n".join("  ".join(word.ljust(w) if i in left else word.rjust(w)
                               for i, (word, w) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in table)


def as_markdown(lines):
    """A table of GitHub's markdown, ours in bold."""
    out = ["| " + " | ".join(HEAD) + " |", "|---" + "|--:" * (len(HEAD) - 3) + "|---|--:|"]
    for line in lines:
        line = [f"**{line[0]}**", *line[1:]] if line[0].startswith("sparselsh") else line
        out.append("| " + " | ".join(line) + " |")
    return "\n".join(out)


def legend(k, by, threads):
    """What the columns mean."""
    return (f"Microseconds a query are wall time, CPU in brackets (medians of the rounds), at the setting that "
            f"reaches the recall@{k} in least {by} time; {threads} thread(s). \"x ours\" is that time over "
            f"sparselsh's at its cheapest setting (above 1: slower than sparselsh), \"exact x\" how many times faster "
            f"than NumPy with BLAS. B/neuron is the size beyond the weights: the saved index less one copy of the "
            f"weights, for sparselsh `LSHIndex.nbytes`. \"computed\" is the share of the neurons whose inner product "
            f"is computed in full.")


def plot(path, layers, by, k):
    """Recall against microseconds, a panel for each layer and mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = sorted({_family(r) for results in layers.values()
                    for r in results if "points" in r})
    colours = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)}
    figure, axes = plt.subplots(len(layers), 2, figsize=(15, 5.5 * len(layers)), squeeze=False)
    for row, (layer, results) in zip(axes, layers.items(), strict=True):
        for panel, mode in zip(row, MODES, strict=True):
            for result in results:
                if "points" in result:
                    _curve(panel, result, mode, by, colours)
            panel.set(xscale="log", title=f"{layer}, {'one query at a time' if mode == 'one' else 'batches of 256'}",
                      xlabel=f"microseconds a query ({by})", ylabel=f"recall@{k}", ylim=(0.5, 1.005))
            panel.grid(alpha=0.3, which="both")
    handles = {label: handle for panel in axes.flat
               for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _family(result):
    return result["name"].removesuffix(" (raw)").removesuffix(" (centred)")


def _curve(panel, result, mode, by, colours):
    name = "recall_one" if mode == "one" else "recall"
    ordered = sorted(result["points"], key=lambda p: p[mode][f"{by}_us"])
    front = []
    for point in ordered:  # only what no faster setting reaches
        if not front or point[name] > front[-1][name]:
            front.append(point)
    ours = result["package"] == "sparselsh"
    colour = colours[_family(result)]
    panel.plot([p[mode][f"{by}_us"] for p in front], [p[name] for p in front], label=result["name"],
               color="black" if ours else colour, linewidth=2.5 if ours else 1.2,
               linestyle=":" if result["view"] == "raw" else "-",
               marker="*" if len(front) == 1 else ".", markersize=11 if len(front) == 1 else 4)
