"""The comparison as one HTML file: no network, no scripts, plots inside.

What is compared, cost beside accuracy, stands in one table that a screen shows whole; tasks, details and prices follow.
"""

from __future__ import annotations

import json
from itertools import groupby

from jinja2 import Environment
from markupsafe import Markup

from tokenzoo.comparison.rows import Comparison, Row, Section
from tokenzoo.report import plots
from tokenzoo.report.column import Column, ranking
from tokenzoo.report.columns import COLUMN_GROUPS, SLOWER, benchmarks, quoted_cells
from tokenzoo.report.wording import DIFFERS, INTERVALS, RATIO, SPREAD, marks, remarks, slower, subtitle

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tokenzoo comparison</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --measured: #1a7f4b; --computed: #1769aa; --quoted: #a3418f; }
@media (prefers-color-scheme: dark) { :root { --measured: #5fd39a; --computed: #7cc0f5; --quoted: #e69ad6; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
thead th { border-bottom: 0; vertical-align: bottom; font-weight: 600; } thead small { font-weight: 400; opacity: .75; }
thead tr:first-child th { text-align: center; border-bottom: 2px solid; }
thead tr:last-child th { border-bottom: 2px solid var(--line); }
.measured { color: var(--measured); } .computed { color: var(--computed); } .quoted { color: var(--quoted); }
tr.baseline td { background: var(--soft); } tr.baseline td:first-child { background: Canvas; }
.best { font-weight: 700; } .second { text-decoration: underline; } .slower { color: #c62828; }
.failed td, .refused td { color: #c62828; text-align: left; white-space: normal; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots svg { max-width: 100%; height: auto; background: white; }
code { font-size: .95em; } details { margin: 1rem 0; } pre { overflow-x: auto; background: var(--soft); padding: .8rem; }
.note { opacity: .8; }
</style>
</head>
<body>
<h1>Visual-token reduction, compared</h1>
<p class="note"><b class="measured">Measured</b> on {{ environment.machine }}, {{ environment.threads }} threads, torch
{{ environment.torch }}, transformers {{ environment.transformers }}, {{ environment.dtype }}, {{ environment.attention }}
attention, tokenzoo {{ environment.tokenzoo }}. <b class="computed">Computed</b> exactly from the recorded tokens.
<b class="quoted">Quoted</b> from papers. {{ legend }}{% for note in notes %} {{ note }}{% endfor %}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<p class="note">{{ section.subtitle }}. {{ section.timed_on }}</p>
{% if section.terms %}<p>{{ section.terms }}</p>{% endif %}
{% for table in section.tables %}
<div class="wide"><table>
<thead>
<tr><th></th>
{% for origin, width in table.groups %}<th colspan="{{ width }}" class="{{ origin }}">{{ origin }}</th>{% endfor %}</tr>
<tr><th>Method</th>
{% for column in table.columns %}<th>{{ column.title }}<br><small>{{ column.unit }}</small></th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in table.rows %}
<tr class="{{ row.kind }}"><td><code>{{ row.label }}</code></td>
{% if row.problem %}<td colspan="{{ table.columns | length }}">{{ row.problem }}</td>
{% else %}{% for text, rank in row.cells %}<td class="{{ rank }}">{{ text }}</td>{% endfor %}{% endif %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% if section.published %}<div class="wide"><table>
<thead><tr><th></th><th></th><th colspan="{{ section.benchmarks | length }}" class="quoted">quoted</th></tr>
<tr><th>Printed row</th><th>Source</th>{% for name in section.benchmarks %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for cells in section.published %}<tr>{% for text in cells %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% for note in section.notes %}<p class="note">{{ note }}</p>{% endfor %}
<div class="plots">{% for plot in section.plots %}{{ plot }}{% endfor %}</div>
{% endfor %}
<details><summary>Settings and environment</summary><pre>{{ record }}</pre></details>
</body>
</html>
"""


def html(comparison: Comparison) -> str:
    """The whole report as one self-contained page."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    return template.render(
        environment=comparison.environment,
        legend=f"{marks(comparison, 'Bold', 'underlined')} {INTERVALS}; {DIFFERS}. {SPREAD}; {RATIO}.",
        notes=comparison.notes,
        sections=[_section(section) for section in comparison.sections],
        record=json.dumps({"settings": comparison.settings, "environment": comparison.environment}, indent=2),
    )


def _section(section: Section) -> dict:
    return {
        "title": section.title,
        "subtitle": subtitle(section),
        "timed_on": section.timed_on,
        "terms": section.terms,
        "tables": [_table(section, columns) for group in COLUMN_GROUPS if (columns := group(section))],
        "benchmarks": benchmarks(section.published),
        "published": [
            [f"{row.method}: {row.row} ({row.architecture})", row.source, *quoted_cells(row, benchmarks(section.published))]
            for row in section.published
        ],
        "notes": [*slower(section), *remarks(section)],
        "plots": [Markup(plots.svg(plot(section))) for plot in (plots.pareto, plots.tokens_per_layer)],
    }


def _table(section: Section, columns: list[Column]) -> dict:
    rows = sorted(section.rows, key=lambda row: not row.is_baseline)
    ranks = [ranking(column, rows, section.equal_cost) for column in columns]
    return {
        "groups": [(origin, len(list(group))) for origin, group in groupby(columns, key=lambda column: column.origin)],
        "columns": columns,
        "rows": [_row(index, row, columns, ranks) for index, row in enumerate(rows)],
    }


def _row(index: int, row: Row, columns: list[Column], ranks: list[dict]) -> dict:
    if row.status != "ok":
        return {"label": row.label, "kind": row.status, "problem": f"{row.status}, see below"}
    cells = []
    for column, rank in zip(columns, ranks, strict=True):
        text = column.text(row)
        cells.append((text, rank.get(index, "") + (" slower" if text.endswith(SLOWER) else "")))
    return {"label": row.label, "kind": "baseline" if row.is_baseline else "", "problem": "", "cells": cells}
