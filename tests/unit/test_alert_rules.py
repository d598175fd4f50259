"""The alert rules, tested with Prometheus' own promtool."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import promtool

MONITORING = Path(__file__).parents[2] / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text("utf-8"))
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
CASES = yaml.safe_load((MONITORING / "rules.test.yml").read_text("utf-8"))["tests"]
DASHBOARD = MONITORING / "grafana" / "dashboards" / "registration-worker.json"


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    """The cases are in `monitoring/rules.test.yml`; an operator who changes a threshold can run
    them, too."""
    assert promtool.check(MONITORING / "rules.yml") == ""
    assert promtool.test(MONITORING / "rules.test.yml") == ""


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """This includes new rules."""
    tried = {(case["name"], bool(c["exp_samples"])) for case in CASES
             for c in case["promql_expr_test"]}  # fmt: skip
    assert tried == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("label", ["instance", "job"])
def test_each_alert_fires_for_one_ledger_while_another_is_well(tmp_path: Path, label: str) -> None:
    """One Prometheus watches both; what a scrape adds names the ledger that the alert is for."""
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    file = tmp_path / "two.test.yml"
    tests = [_beside_another(case, label) for case in CASES]
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    assert promtool.test(file) == ""


def _beside_another(case: dict[str, Any], label: str) -> dict[str, Any]:
    """A case for the ledger b, beside a ledger a for which it stays as it is at first."""
    [first] = [check for check in case["promql_expr_test"] if check["exp_samples"]]
    alerts = f'ALERTS{{alertname="{case["name"]}",alertstate="firing",{label}="%s"}}'
    return {
        "interval": case["interval"],
        "input_series": [
            {"series": _labelled(one["series"], label, ledger), "values": values}
            for one in case["input_series"]
            for ledger, values in {
                "a": re.sub(r"x\d+ .*", "x400", one["values"]),
                "b": one["values"],
            }.items()
        ],
        "promql_expr_test": [
            {
                "expr": f"count({alerts % ledger})",
                "eval_time": first["eval_time"],
                "exp_samples": expected,
            }
            for ledger, expected in {"a": [], "b": [{"labels": "{}", "value": 1}]}.items()
        ],
    }


def _labelled(series: str, label: str, value: str) -> str:
    name, _, rest = series.partition("{")
    return f'{name}{{{label}="{value}"' + (f",{rest}" if rest else "}")


@pytest.mark.parametrize(
    ("before", "after"),
    [("> 0.8", "> 0.9"), ("for: 4h", "for: 3h"), ('state!="review"', 'state!="none"')],
)
def test_a_rule_that_says_something_else_is_found(tmp_path: Path, before: str, after: str) -> None:
    """The cases fail if a threshold, a time or a label changes."""
    rules = (MONITORING / "rules.yml").read_text("utf-8")
    assert before in rules
    (tmp_path / "rules.yml").write_text(rules.replace(before, after))
    cases = shutil.copy(MONITORING / "rules.test.yml", tmp_path)
    assert "FAILED" in promtool.test(Path(cases))


def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    """Prometheus accepts it; a fixed interval replaces Grafana's variable."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m")
             for panel in panels for target in panel.get("targets", [])]  # fmt: skip
    assert len(asked) > 25
    rules = [{"record": f"panel:{n}", "expr": expression} for n, expression in enumerate(asked)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert promtool.check(file) == ""
    file.write_text(file.read_text().replace("(", "", 1))
    assert promtool.check(file) != ""
