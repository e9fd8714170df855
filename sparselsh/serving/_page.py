"""A page to try the model in a browser: one file, no resources from elsewhere."""
from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._answers import Rows, Sequences, Texts

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
textarea { width: 100%; min-height: 8rem; font: inherit; box-sizing: border-box; }
label { display: block; font-weight: 600; margin-top: 1rem; }
input { font: inherit; width: 6rem; }
button { font: inherit; padding: .3rem 1rem; margin-top: 1rem; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
table { border-collapse: collapse; margin-top: 1rem; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8888; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
#error { color: #b00020; font-weight: 600; }
@media (prefers-color-scheme: dark) { #error { color: #ff8a80; } }
"""

SCRIPT = """
"use strict";
const form = document.getElementById("form"), error = document.getElementById("error");
const table = document.getElementById("answers"), rows = table.querySelector("tbody");
const status = document.getElementById("status"), words = document.getElementById("words");
const item = document.body.dataset.item;
let asked = "";

async function post(path, body) {
  const answer = await fetch(path, {method: "POST", body: JSON.stringify(body),
                                    headers: {"content-type": "application/json"}});
  const found = await answer.json();
  if (!answer.ok) { throw new Error(found.error); }
  return found;
}

function cell(row, content, isNumber) {
  const place = row.insertCell();
  if (isNumber) { place.className = "number"; }
  place.append(content);
}

async function explain(label) {
  try {
    const found = await post("explain", {text: asked, label: label, n: 12});
    words.textContent = label + ": " + found.words.map(
      (w) => w.word + " (" + w.weight.toFixed(2) + ")").join(", ");
  } catch (problem) { error.textContent = problem.message; }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  error.textContent = words.textContent = "";
  rows.replaceChildren();
  try {
    const input = document.getElementById("input").value;
    const k = Number(document.getElementById("k").value);
    asked = input;
    const value = item === "text" ? input
      : item === "items" ? input.split("\\n").map((name) => name.trim()).filter(Boolean)
      : JSON.parse(input);
    const found = await post("predict", {[item]: value, k: k});
    for (const one of found.predictions[0]) {
      const row = rows.insertRow();
      cell(row, String(one.label));
      cell(row, (one.probability ?? one.score).toFixed(3), true);
      if (item === "text") {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "Why?";
        button.setAttribute("aria-label", "Why " + one.label + "?");
        button.addEventListener("click", () => explain(one.label));
        cell(row, button);
      }
    }
    table.hidden = false;
    status.textContent = found.predictions[0].length + " answers";
  } catch (problem) {
    table.hidden = true;
    status.textContent = "";
    error.textContent = problem.message;
  }
});
"""


def _source(text: str) -> str:
    """A text as a source of a Content-Security-Policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src {_source(SCRIPT)}; style-src "
                               f"{_source(STYLE)}; connect-src 'self'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def page(name: str, answers: Rows | Sequences | Texts) -> str:
    """The page for a model."""
    label, example = {"text": ("Text", ""), "items": ("Items so far, one per line", "")}.get(
        answers.item, ("Features and values, as JSON", '{"0": 1.0, "7": 0.5}'))
    number = "Probability" if answers.has_probabilities else "Score"
    why = '<th scope="col">Words</th>' if answers.has_explanations else ""
    title = escape(f"sparselsh: {name}" if name else "sparselsh")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body data-item="{answers.item}">
<main>
<h1>{title}</h1>
<p>{answers.n_labels:,} labels.</p>
<form id="form">
<label for="input">{label}</label>
<textarea id="input" required dir="auto">{escape(example)}</textarea>
<label for="k">Number of answers</label>
<input id="k" type="number" min="1" max="100" value="5" required>
<div><button type="submit">Predict</button></div>
</form>
<p id="error" role="alert"></p>
<p id="status" role="status"></p>
<table id="answers" hidden>
<caption>Answers, best first</caption>
<thead><tr><th scope="col">Label</th><th scope="col">{number}</th>{why}</tr></thead>
<tbody></tbody>
</table>
<p id="words" aria-live="polite"></p>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
