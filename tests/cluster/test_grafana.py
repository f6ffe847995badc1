"""The Grafana dashboard and the table of metrics match what a run exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from maml_ray.monitoring.prometheus import METRICS, TAGS
from maml_ray.monitoring.service_metrics import METRICS as SERVICE_METRICS

CLUSTER = Path(__file__).parents[2] / "cluster"
DASHBOARD: dict[str, Any] = json.loads((CLUSTER / "grafana" / "maml_ray.json").read_text())
LABELS = {f"ray_{metric.name}": {*TAGS, *filter(None, [metric.tag])} for metric in METRICS}
"""Labels of a run's metrics by exported name, with Ray's prefix."""
SERIES: dict[str, dict[str, list[str]]] = {
    "counter": {"": []},
    "gauge": {"": []},
    "histogram": {"_bucket": ["le"], "_sum": [], "_count": []},
}
SERVICE_LABELS = {
    metric.name + suffix: {*metric.labels, *own}
    for metric in SERVICE_METRICS
    for suffix, own in SERIES[metric.kind].items()
}
"""Labels of a service's series by name; through Ray, they have Ray's prefix."""


def queries() -> list[tuple[str, str]]:
    """Return (panel, PromQL) of all panels, with Grafana's variables replaced by values."""
    values = {"$__rate_interval": "1m", "$run": ".*", "$job": ".*"}
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in values.items():
                query = query.replace(variable, value)
            found.append((f"{panel['title']}/{target['refId']}", query))
    return found


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Yield all vector selectors under a node of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from selectors(one)


def name_of(selector: promql_parser.VectorSelector) -> str:
    """Return the name of the series; of a service's, without the prefix that they may have."""
    names = [one.value for one in selector.matchers.matchers if one.name == "__name__"]
    return names[0].removeprefix("(ray_)?") if names else str(selector.name)


@pytest.mark.parametrize(("panel", "query"), queries(), ids=[panel for panel, _ in queries()])
def test_a_panel_asks_in_promql_for_what_is_exported(panel: str, query: str) -> None:
    found = list(selectors(promql_parser.parse(query)))
    assert found
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"(?:by|ignoring) \(([^)]*)\)", query))))
    if name_of(found[0]) in SERVICE_LABELS:
        assert len(found) == len(re.findall(r"maml_ray_\w+", query)), "a selector was not seen"
        names = {name_of(selector) for selector in found}
        assert names <= set(SERVICE_LABELS), "it is not exported"
        assert grouped <= {label for name in names for label in SERVICE_LABELS[name]}
        return
    assert len(found) == len(re.findall(r"ray_maml_ray_\w+", query)), "a selector was not seen"
    for selector in found:
        assert selector.name in LABELS, f"{selector.name} is not exported"
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched == set(TAGS), "a panel must be of the runs that are chosen"
    assert grouped <= {label for one in found for label in LABELS[str(one.name)]}


def test_counters_are_counters_and_every_metric_has_a_panel() -> None:
    shown = {name for _, query in queries() for name in re.findall(r"ray_maml_ray_\w+", query)}
    assert shown == set(LABELS)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.startswith("maml_ray_")
    of_service = {
        name for _, query in queries() for name in re.findall(r"maml_ray_serve_\w+", query)
    }
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in of_service} == {
        metric.name for metric in SERVICE_METRICS
    }
    for _, query in queries():
        for name in re.findall(r"rate\((?:{__name__=~\"\(ray_\)\?)?(\w+)", query):
            assert name.endswith(("_total", "_bucket", "_sum", "_count")), (
                "only counters have a rate"
            )


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_variable_that_is_used_is_defined_and_the_other_way_round() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used == set(variables)
    for name in ("run", "job"):
        asked = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variables[name]["definition"])
        assert asked is not None
        assert asked[2] in LABELS[asked[1]]


def test_the_config_map_has_the_label_that_grafana_looks_for() -> None:
    made = yaml.safe_load((CLUSTER / "grafana" / "kustomization.yaml").read_text())
    assert made["generatorOptions"]["labels"] == {"grafana_dashboard": "1"}
    (generator,) = made["configMapGenerator"]
    for name in generator["files"]:
        assert (CLUSTER / "grafana" / name).is_file()


def test_prometheus_finds_the_nodes_where_ray_lists_them() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    written = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yaml").read_text())
    of_ray, of_service = written["scrape_configs"]
    (discovery,) = of_ray["file_sd_configs"]
    assert discovery["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    (targets,) = of_service["static_configs"]
    assert targets == {"targets": ["127.0.0.1:8000"]}  # the defaults of `maml-ray serve`


def test_the_table_of_metrics_is_the_one_that_they_are_registered_from() -> None:
    page = (CLUSTER / "grafana" / "README.md").read_text()
    rows = [
        f"| `ray_{metric.name}` | {metric.kind} | {metric.unit} | {metric.meaning} |"
        for metric in METRICS
    ]
    rows += [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {metric.meaning} |"
        for metric in SERVICE_METRICS
    ]
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows
