"""Prometheus' own promtool: which alerts fire for given scrapes, and which expressions are
valid."""

import math
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.programs import needed

Labels = frozenset[tuple[str, str]]
Samples = Mapping[str, Mapping[Labels, float]]

#: Minutes for which the earlier scrape is repeated before the later one. `increase` sees the step
#: between the two; rules look back an hour at the most.
BEFORE = 10


def scrape(*texts: str) -> Samples:
    """The samples of metrics pages, by name."""
    found: dict[str, dict[Labels, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def names(text: str) -> set[str]:
    """All names that a metrics page can have, also for events that have not happened yet."""
    found = set()
    for family in text_string_to_metric_families(text):
        match family.type:
            case "counter":
                found.add(f"{family.name}_total")
            case "histogram":
                found |= {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
            case _:
                found.add(family.name)
    return found


def selected(expression: str) -> set[str]:
    """The names of our metrics that an expression uses."""
    return set(re.findall(r"\bregworker_\w+", expression))


def check(rules: Path) -> str:
    """The errors that `promtool check rules` finds in a file; empty if there are none."""
    return _run("check", "rules", str(rules))


def test(file: Path) -> str:
    """The errors that `promtool test rules` finds in a file of tests; empty if there are none."""
    return _run("test", "rules", file.name, folder=file.parent)


def unexpected(
    folder: Path,
    rules: Path,
    expected: Mapping[str, Iterable[Mapping[str, str]]],
    now: Samples,
    before: Samples | None = None,
) -> str:
    """Whether of these alerts exactly the expected ones fire once their `for` has passed.

    `expected`: by alert, the labels of each that fires. `before`: an earlier scrape, for
    `increase`."""
    waits = {
        rule["alert"]: _minutes(rule.get("for", "0m"))
        for group in yaml.safe_load(rules.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    }
    longest = max(waits[name] for name in expected)
    checks = [
        {
            # The severity is no label of a metric: `max` removes it and keeps the metric's labels.
            "expr": f'max without (severity) (ALERTS{{alertname="{name}",alertstate="firing"}})',
            "eval_time": f"{BEFORE + waits[name] + 2}m",
            "exp_samples": [
                {"labels": _labels({"alertname": name, "alertstate": "firing", **one}), "value": 1}
                for one in ones
            ],
        }
        for name, ones in expected.items()
    ]
    document = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": _series(before or now, now, longest + 5),
                "promql_expr_test": checks,
            }
        ],
    }
    file = folder / "alerts.test.yml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    return test(file)


def _series(before: Samples, now: Samples, minutes: int) -> list[dict[str, str]]:
    keys = {(name, labels) for found in (before, now) for name in found for labels in found[name]}
    return [
        {
            "series": f"{name}{_labels(dict(labels))}",
            "values": f"{_times(before.get(name, {}).get(labels), BEFORE)} "
            f"{_times(now.get(name, {}).get(labels), minutes)}",
        }
        for name, labels in sorted(keys, key=str)
    ]


def _times(value: float | None, minutes: int) -> str:
    """A value repeated for this number of minutes, in promtool's notation."""
    if value is None:
        return f"_x{minutes}"
    shown = f"{value:f}" if math.isfinite(value) else str(value)
    return f"{shown}+0x{minutes - 1}"


def _labels(labels: Mapping[str, str]) -> str:
    """Labels as Prometheus writes them: with quotation marks and backslashes escaped."""
    escaped = {name: text.replace("\\", r"\\").replace('"', r"\"") for name, text in labels.items()}
    return "{" + ",".join(f'{name}="{text}"' for name, text in sorted(escaped.items())) + "}"


def _minutes(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 1, "h": 60}[text[-1]]


def _run(*arguments: str, folder: Path | None = None) -> str:
    [promtool] = needed("alert rules are tested by Prometheus' own promtool", "promtool")
    done = subprocess.run(
        [promtool, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
