"""The alert rules of docker/prometheus: well-formed, and about metrics that a node has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from skalds_streams.core.membership import Members
from skalds_streams.projections.metrics import Metrics, MetricSources

PROMETHEUS = Path(__file__).parents[2] / "docker" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
FIELDS = {"alert", "expr", "for", "labels", "annotations"}
DURATION = r"(?:\d+[smhd])+"
SELECTOR = re.compile(r"\b(skalds_\w+|up)\b(?:\{(.*?)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')
FUNCTIONS = {"max", "increase", "max_over_time", "avg_over_time"}
"""Those of PromQL that the rules use. Another one is another thing to look up."""

rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def scraped() -> dict[str, list[dict[str, str]]]:
    """Name of each sample of a node → its sets of labels, and what Prometheus adds by itself."""
    sources = MetricSources(
        rows=dict,
        members=Members,
        held=list,
        journals=list,
        journals_open=lambda: 0,
        lease_remaining_ms=lambda: None,
        lease_lapses=lambda: 0,
        view_caught_up=lambda: True,
        redis_up=lambda: True,
        lease_ms=20_000,
        version="1",
    )
    samples: dict[str, list[dict[str, str]]] = {"up": [{"job": "skalds"}]}
    for family in text_string_to_metric_families(Metrics(sources).render().decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
    return samples


def test_prometheus_loads_every_file_of_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    others = {path.name for path in PROMETHEUS.glob("*.yml")} - {"prometheus.yml"}
    assert set(config["rule_files"]) == others
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "skalds", "a rule names it"


def test_each_alert_has_one_rule() -> None:
    names = [rule["alert"] for rule in RULES]
    assert sorted(set(names)) == sorted(names)


@rules
def test_a_rule_has_the_fields_that_prometheus_knows(rule: dict[str, Any]) -> None:
    assert rule.keys() <= FIELDS
    assert re.fullmatch(r"Skald[A-Za-z]+", rule["alert"])
    assert re.fullmatch(DURATION, rule.get("for", "0s"))
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description"}


@rules
def test_a_rule_is_about_samples_that_a_node_has(rule: dict[str, Any]) -> None:
    samples, selected = scraped(), SELECTOR.findall(rule["expr"])
    assert selected
    for name, text in selected:
        assert name in samples
        matchers = dict(MATCHER.findall(text))
        assert bool(matchers) == bool(text)
        assert any(matchers.items() <= labels.items() for labels in samples[name]), (name, matchers)


@rules
def test_an_expression_has_nothing_but_selectors_functions_and_numbers(rule: dict[str, Any]) -> None:
    bare = re.sub(rf"\[{DURATION}\]", "", SELECTOR.sub("", rule["expr"]))
    assert set(re.findall(r"[a-z_]+", bare)) <= FUNCTIONS
    assert re.fullmatch(r"[a-z_() 0-9.*<>=]*", bare)
    assert bare.count("(") == bare.count(")")
    assert re.search(r" (?:==|<|>) ", bare), "without a comparison it would always fire"
    counters = [name for name, _ in SELECTOR.findall(rule["expr"]) if name.endswith("_total")]
    assert not counters or "increase(" in rule["expr"], "a counter that has risen once stays risen"


@rules
def test_an_annotation_names_only_what_its_expression_leaves(rule: dict[str, Any]) -> None:
    aggregated = rule["expr"].startswith("max(")
    for text in rule["annotations"].values():
        for inside in re.findall(r"\{\{(.*?)\}\}", text):
            assert inside.strip() in {"$labels.instance", "$value"}
            assert not aggregated, "max() has dropped the labels"
