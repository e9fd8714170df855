"""Write docs/benchmarks.md and its charts from the results of bench/report.py."""
from pathlib import Path

from report_sections import SECTIONS

SOURCES = {
    "tib-core": "subject tags of library records, LLMs4Subjects (SemEval-2025 task 5), TIBKAT core "
                "subjects, official train and dev parts, CC BY 4.0; TF-IDF (sublinear counts, unit "
                "rows, features of 3 rows or more)",
    "eurlex57k": "EUROVOC concepts of EU laws, EURLEX57K, official train and test parts, CC BY-SA "
                 "4.0; TF-IDF (sublinear counts, unit rows, features of 5 rows or more)",
    "enwiki-cbow": "the word between its ten neighbours, English Wikipedia, CC BY-SA",
    "diginetica": "the next item of a shopping session, DIGINETICA, split of SR-GNN",
    "mnist": "MNIST, the standard split",
    "s20k": "synthetic, Zipf-distributed labels and features, 75 values and 5 labels per row",
    "amz": "synthetic, in the shape of Amazon-670K",
}

METHOD = """\
- CPU seconds are those of the process, all threads together. Wall seconds depend on what else the
  machine does; the load average before and after each section is below.
- Contenders run with the same number of threads on the same data. Where times are compared they
  take turns. Figures are medians, with the smallest and the largest measured.
- Rivals run in the mode in which their users deploy them.
- The data are not part of this project. `WORK` is a temporary folder of the run."""


def write(document, out):
    """Write the page, and the charts into the folder _static beside it."""
    out = Path(out)
    charts = {}
    for name, report in document["sections"].items():
        section = SECTIONS[name]
        if section.chart and "results" in report:
            charts[name] = f"_static/{out.stem}_{section.chart}.png"
            section.plot(report["results"], out.parent / charts[name])
    out.write_text(text(document, charts, f"_static/{out.stem}.json"), encoding="utf-8")


def text(document, charts, results_path):
    """The page as Markdown."""
    about, sections = document["circumstances"], document["sections"]
    parts = ["<!-- Written by bench/report.py from its results. Do not edit: run it again. -->",
             "# Benchmarks", ""]
    if about["mode"] == "quick":
        parts += ["**Quick run: figures are not for comparison.** It used small parts of the data "
                  "and one round per contender, to see that every section works.", ""]
    if about["changed_files"]:
        parts += ["The checkout had changes that are not in the commit below.", ""]
    if not about["library"]["same_as_checkout"]:
        parts += ["The Python files of the installed library differ from those of the checkout.",
                  ""]
    name = Path(results_path).name
    parts += [f"All figures of this page are from one run of `bench/report.py`; its results are in "
              f"[{name}]({results_path}). Earlier figures, and what was tried and dropped, are in "
              "[the log](log/benchmarks.md).", ""]
    lines = [line for name, report in sections.items() if "results" in report
             for line in SECTIONS[name].summary(report["results"])]
    if lines and about["mode"] != "quick":
        parts += ["## In short", "", *lines, ""]
    parts += circumstances(document)
    for name, section in SECTIONS.items():
        report = sections.get(name)
        if report is not None and "results" in report:
            parts += [f"## {section.title}", "", section.about, "", "```sh", *report["commands"],
                      "```", "", section.page(report["results"]).rstrip(), ""]
            if name in charts:
                parts += [f"![{section.title}]({charts[name]})", ""]
    return "\n".join(parts).rstrip() + "\n"


def circumstances(document):
    """The run: commands, commit, machine, versions, data, sections."""
    about, sections = document["circumstances"], document["sections"]
    computer, library = about["machine"], about["library"]
    mode = "" if about["mode"] == "default" else f" --{about['mode']}"
    memory = computer["memory_bytes"]
    parts = [
        "## The run", "", "```sh",
        f"python -P bench/report.py DATA_DIR{mode} --threads {about['threads']} "
        "--pecos-python PECOS_PYTHON --rivals-python RIVALS_PYTHON",
        "```", "", METHOD, "",
        f"- Commit {about['commit'][:12] or 'unknown'} of {about['commit_date'] or 'unknown'}, "
        f"sparselsh {library['version']}.",
        f"- Machine: {computer['processor']}, {computer['cores']} cores, SIMD level "
        f"`{library['simd_level']}`"
        + (f", {memory / 2**30:.0f} GiB of memory" if memory else "") + f", {computer['system']}.",
    ]
    for name, versions in about["versions"].items():
        if versions:
            listed = ", ".join(f"{package} {version}" for package, version in versions.items()
                               if package != "sparselsh-nn")
            parts.append(f"- Versions ({name}): {listed}.")
    if about["variables"]:
        listed = ", ".join(f"{name}={value}" for name, value in about["variables"].items())
        parts.append(f"- Environment: {listed}.")

    sets, absent = {}, []
    for report in sections.values():
        sets |= report["data_sets"]
        absent += report["absent"]
    parts += ["", "| data | training rows | test rows | features | labels | source |",
              "|---|--:|--:|--:|--:|---|"]
    parts += [f"| {name} | {s['train_rows']:,} | {s['test_rows']:,} | {s['features']:,} | "
              f"{s['labels']:,} | {SOURCES.get(name, '-')} |" for name, s in sets.items()]
    if absent:
        parts += ["", f"Absent data sets: {', '.join(dict.fromkeys(absent))}."]

    parts += ["", "| section | started (UTC) | minutes | load before, after |", "|---|---|--:|--:|"]
    not_run = []
    for name, section in SECTIONS.items():
        report = sections.get(name)
        if report is None:
            hint = "" if section.default else ", part of `--full`"
            not_run.append(f"- {name} ({section.title}): not run{hint}.")
        elif "results" not in report:
            why = f"failed: {report['failed']}" if "failed" in report else \
                f"skipped: {report['skipped']}"
            not_run.append(f"- {name} ({section.title}): {why}.")
        else:
            loads = ", ".join("-" if report[key] is None else f"{report[key]:.1f}"
                              for key in ("load_before", "load_after"))
            started = report["started"].split("+")[0].replace("T", " ")
            parts.append(f"| {name} | {started} | {report['seconds'] / 60:.1f} | {loads} |")
    if not_run:
        parts += ["", "Sections without figures:", "", *not_run]
    return [*parts, ""]
