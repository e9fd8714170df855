"""Tables and the chart of bench/retrieval.py."""
from common import log_x_axis, markdown_table, text_table

HEAD = ["contender", "build, s (CPU)", "bytes per neuron", "single, µs", "x ours", "exact x",
        "batch, µs per query", "x ours", "exact x", "recall", "setting: single; batch", "computed"]
MODES = ("one", "batch")


def cheapest(result, target, mode, by):
    """The point of a contender that reaches the recall in the least time, or None."""
    name = "recall_one" if mode == "one" else "recall"
    points = [p for p in result["points"] if p[name] >= target]
    return min(points, key=lambda p: p[mode][f"{by}_us"], default=None)


def rows(results, target, by):
    """The table of one layer at one recall, as lists of strings."""
    results = [r for r in results if "failed" not in r and r["target"] in (None, target)]
    ours, exact = (_times(results, name, target, by) for name in ("sparselsh ", "exact (NumPy"))
    lines = []
    for result in results:
        best = {mode: cheapest(result, target, mode, by) for mode in MODES}
        if not any(best.values()) and result["name"].endswith("own setting"):
            # it chose this setting for the target on other queries: show what it reaches on these
            best = dict.fromkeys(MODES, result["points"][0])
        build = result["build"]
        line = [result["name"], f"{build['wall']:.1f} ({build['cpu']:.1f})",
                "-" if build["bytes"] is None else f"{build['bytes']:.0f}"]
        for mode in MODES:
            if best[mode] is None:
                line += ["not reached", "-", "-"]
                continue
            figures = best[mode][mode]
            time = figures[f"{by}_us"]
            low, high = figures[f"{by}_us_spread"]
            line += [f"{time:.1f} ({low:.1f} to {high:.1f})", _ratio(time, ours[mode]),
                     _ratio(exact[mode], time)]
        if any(best.values()):
            recalls = [f"{best[mode][name]:.3f}" if best[mode] else "-"
                       for mode, name in zip(MODES, ("recall_one", "recall"), strict=True)]
            line += [_both(recalls), _both([_setting(best[mode]) for mode in MODES]),
                     _fractions(best)]
        else:
            top = max(result["points"], key=lambda p: p["recall"], default=None)
            line += [f"at most {top['recall']:.3f}" if top else "none", _setting(top), "-"]
        lines.append(line)
    return lines


def _times(results, prefix, target, by):
    # "sparselsh 0.95" precedes "sparselsh 0.95 own setting": rivals too get their best setting
    result = next((r for r in results if r["name"].startswith(prefix)), None)
    points = {mode: result and cheapest(result, target, mode, by) for mode in MODES}
    return {mode: point and point[mode][f"{by}_us"] for mode, point in points.items()}


def _ratio(a, b):
    return "-" if a is None or b is None else f"{a / b:.2f}"


def _both(words):
    return words[0] if words[0] == words[1] else "; ".join(words)


def _setting(point):
    if point is None:
        return "-"
    return " ".join(f"{name}={value}" for name, value in point["setting"].items()) or "-"


def _fractions(best):
    texts = []
    for i, mode in enumerate(MODES):
        fraction = best[mode] and best[mode]["fraction"]
        fraction = fraction[i] if isinstance(fraction, tuple | list) else fraction
        texts.append("-" if fraction is None else f"{fraction:.2%}")
    return _both(texts)


def as_text(lines):
    """Aligned columns."""
    return text_table(HEAD, lines)


def as_markdown(lines):
    """A Markdown table, ours in bold."""
    lines = [[f"**{line[0]}**", *line[1:]] if line[0].startswith("sparselsh") else line
             for line in lines]
    return markdown_table(HEAD, lines)


def notes(results, rehash):
    """What contenders say about themselves, and the time of `LSHIndex.update`, as list items."""
    items = [f"- {r['name']}: {r.get('failed') or r['note']}"
             for r in results if r.get("failed") or r.get("note")]
    if rehash:
        items.append(f"- `LSHIndex.update` of {rehash['rows']} rows, CPU ms: " + ", ".join(
            f"{name} {ms:.1f}" for name, ms in rehash["cpu_ms"].items()))
    return items


def legend(k, by, threads):
    """What the columns mean."""
    return (
        f"Times are {by} microseconds per query, medians of the rounds with the smallest and the "
        f"largest in brackets, at the setting that reaches the recall@{k} in the least time, with "
        f'{threads} thread(s). "x ours" is that time divided by that of sparselsh at its fastest '
        f'setting (above 1: slower than sparselsh), "exact x" how many times faster it is than '
        f"NumPy with BLAS. Bytes per neuron are those beyond the weights: the saved index less one "
        f'copy of the weights, for sparselsh `LSHIndex.nbytes`. "computed" is the fraction of the '
        f"neurons whose inner product is computed in full.")


def plot(path, layers, by, k):
    """Recall against microseconds, a panel for each layer and mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    results_of = {name: layer["contenders"] for name, layer in layers.items()}
    names = sorted({_family(r) for results in results_of.values() for r in results
                    if "points" in r})
    colours = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)}
    figure, axes = plt.subplots(len(layers), 2, figsize=(11, 4.2 * len(layers)), squeeze=False,
                                layout="constrained")
    for row, (layer, results) in zip(axes, results_of.items(), strict=True):
        for panel, mode in zip(row, MODES, strict=True):
            for result in results:
                if "points" in result:
                    _curve(panel, result, mode, by, colours)
            title = "single queries" if mode == "one" else "batches of 256"
            panel.set(title=f"{layer}, {title}", ylim=(0.5, 1.005),
                      xlabel=f"microseconds per query ({by})", ylabel=f"recall@{k}")
            log_x_axis(panel)
    handles = {label: handle for panel in axes.flat
               for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _family(result):
    return result["name"].removesuffix(" (raw)").removesuffix(" (centred)")


def _curve(panel, result, mode, by, colours):
    name = "recall_one" if mode == "one" else "recall"
    ordered = sorted(result["points"], key=lambda p: p[mode][f"{by}_us"])
    front = []
    for point in ordered:  # only points whose recall no faster setting reaches
        if not front or point[name] > front[-1][name]:
            front.append(point)
    ours = result["package"] == "sparselsh"
    colour = colours[_family(result)]
    panel.plot([p[mode][f"{by}_us"] for p in front], [p[name] for p in front],
               label=result["name"], color="black" if ours else colour,
               linewidth=2.5 if ours else 1.2, linestyle=":" if result["view"] == "raw" else "-",
               marker="*" if len(front) == 1 else ".", markersize=11 if len(front) == 1 else 4)
