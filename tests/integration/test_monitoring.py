"""The alert rules, the dashboard and the table of metrics speak of what a real daemon tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.support import PATIENCE, needed, wait_until
from helpers.web import free_port, site
from helpers.writer import LEADER
from trackd.operations.metrics import fleet_gauges
from trackd_client import Proxy, Tracker
from trackd_client.metrics import exposition
from trackd_client.testing import MakeDaemon

REPOSITORY = Path(__file__).parents[2]
ALERTS = REPOSITORY / "docs" / "alerts.yml"
DASHBOARD = REPOSITORY / "docs" / "grafana-dashboard.json"
MONITORING = REPOSITORY / "docs" / "monitoring.md"
#: Labels that every sample has: Prometheus adds two, and the text of a daemon one.
EVERYWHERE = {"cluster", "instance", "job"}


@pytest.fixture
def families(make_trackd_daemon: MakeDaemon) -> list[list[Any]]:
    """What a daemon tells that has just begun, and what a leader of a fleet adds."""
    with Tracker(make_trackd_daemon().endpoint) as tracker:
        tracker.track_expected(Proxy("p"))
        told: list[list[Any]] = tracker.metrics()["families"]
    assert not [name for name, *_ in told if "fleet" in name]
    return [*told, *fleet_gauges(LEADER, 1)]


def series(families: list[list[Any]]) -> dict[str, set[str]]:
    """Return the names that Prometheus stores, each with its labels."""
    found: dict[str, set[str]] = {}
    for name, kind, _help, labels, _samples in families:
        if kind == "histogram":
            found[f"{name}_bucket"] = {*labels, "le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = set(labels)
        else:
            found[f"{name}_total" if kind == "counter" else name] = set(labels)
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Yield every expression of a dashboard."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def check(expression: str, known: dict[str, set[str]]) -> None:
    """Check that an expression names what there is, with labels that it has."""
    for name, selector in re.findall(r"\b(trackd_\w+)(?:\{([^}]*)\})?", expression):
        assert name in known, name
        for label in re.findall(r"(\w+)\s*[=!]~?\s*\"", selector):
            assert label in {*known[name], *EVERYWHERE}, (name, label)
    for labels in re.findall(r"(?:by|without)\s*\(([^)]*)\)", expression):
        names = re.findall(r"\b(trackd_\w+)", expression)
        for label in re.split(r"[\s,]+", labels):
            assert any(label in {*known[name], *EVERYWHERE} for name in names), label


def promtool(*arguments: object, cwd: Path) -> str:
    ran = subprocess.run(
        [needed("promtool", "prometheus"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS, cwd=REPOSITORY)


def test_promtool_finds_nothing_wrong_with_the_metrics(families: list[list[Any]]) -> None:
    ran = subprocess.run(
        [needed("promtool", "prometheus"), "check", "metrics"],
        input=exposition(families),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_texts_of_two_clusters_can_be_read_together(make_trackd_daemon: MakeDaemon) -> None:
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for cluster in ("one.example", "two.example"):
        with Tracker(make_trackd_daemon(cluster_name=cluster).endpoint) as tracker:
            tracker.track_expected(Proxy("p", "g"))
            text = exposition(tracker.metrics()["families"])
        found = {
            (sample.name, frozenset(sample.labels.items()))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found
        assert all(("cluster", cluster) in labels for _, labels in found)
        assert not found & seen, "the collector refuses both files"
        seen |= found


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    rules = ALERTS.read_text()
    cases = (REPOSITORY / "tests" / "integration" / "alerts_test.yml").read_text()
    bare = re.sub(r"(?m)^        annotations:\n(?:          .*\n)+", "", rules)
    assert "annotations" not in bare
    (tmp_path / "alerts.yml").write_text(bare)
    (tmp_path / "alerts_test.yml").write_text(cases)
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    for alert in re.findall(r"- alert: (\w+)", rules):
        assert re.search(rf"alertname: {alert}\n +exp_alerts:", cases), f"{alert} never fires"
        assert re.search(rf"alertname: {alert}\}}", cases), f"{alert} is never quiet"


def test_a_case_that_is_wrong_is_found(tmp_path: Path) -> None:
    rules = ALERTS.read_text().replace("trackd_store_failing == 1", "trackd_store_failing == 2")
    cases = REPOSITORY / "tests" / "integration" / "alerts_test.yml"
    (tmp_path / "alerts.yml").write_text(re.sub(r"annotations:\n( {10}.*\n)+", "", rules))
    shutil.copy(cases, tmp_path)
    with pytest.raises(AssertionError, match="TrackdStoreFailing"):
        promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)


def test_the_rules_name_what_a_daemon_tells(families: list[list[Any]]) -> None:
    known = series(families)
    found = re.findall(r"(?ms)^        expr: (.*?)\n        (?=for|labels)", ALERTS.read_text())
    assert len(found) == ALERTS.read_text().count("- alert:")
    for expression in found:
        check(expression, known)


def test_the_dashboard_names_what_a_daemon_tells(families: list[list[Any]]) -> None:
    known = series(families)
    dashboard = json.loads(DASHBOARD.read_text())
    found = [*expressions(dashboard)]
    assert len(found) > 30
    for expression in found:
        check(expression, known)
    shown = " ".join(found)
    left_out = {name for name, *_ in families if name not in shown}
    assert left_out == {
        "trackd_build_info",
        "trackd_connection_count",
        "trackd_group_claimed_proxies",
        "trackd_gossip_limited_ttls",
        "trackd_groups",
        "trackd_log_lines_dropped",
        "trackd_revision",
    }


PROMETHEUS = """\
global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}
rule_files: ["{alerts}"]
scrape_configs:
  - job_name: trackd
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A real one, that reads a daemon."""

    def __init__(self, directory: Path, target: str) -> None:
        file = directory / "prometheus.yml"
        file.write_text(PROMETHEUS.format(alerts=ALERTS, target=target))
        self._address = f"127.0.0.1:{free_port()}"
        with (directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(needed("prometheus", "prometheus"), f"--config.file={file}"),
                    *(f"--storage.tsdb.path={directory}/data", "--log.level=error"),
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **query: str) -> Any:
        """Return what its interface answers, or None while it does not."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                return None  # it starts
            raise AssertionError(error.read().decode()) from None
        except OSError:
            return None

    def value(self, expression: str) -> Any:
        """Return the series of an expression."""
        told = self.ask("query", query=expression)
        return None if told is None else told["result"]


@pytest.mark.slow
def test_prometheus_reads_a_daemon_and_understands_the_rules_and_the_dashboard(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    served = site(make_trackd_daemon)
    prometheus = Prometheus(tmp_path, served.address)
    try:
        with Tracker(served.daemon.endpoint) as tracker:
            tracker.track_expected(Proxy("p"), Proxy("q"))
            assert tracker.adopt("p")
            wait_until(lambda: prometheus.value("trackd_claimed_proxies == 1"))
            assert tracker.adopt("p") is None
            wait_until(lambda: prometheus.value("rate(trackd_duplicates_total[10s]) > 0"))
            rules = prometheus.ask("rules")["groups"][0]["rules"]
            wait_until(lambda: {rule["health"] for rule in rules_of(prometheus)} == {"ok"})
            assert len(rules) == ALERTS.read_text().count("- alert:")
            (target,) = prometheus.ask("targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            asked = [
                re.sub(r"\$(instance|cluster)\b", ".*", expression).replace(
                    "$__rate_interval", "10s"
                )
                for expression in expressions(json.loads(DASHBOARD.read_text()))
                if not expression.startswith("label_values")
            ]
            quiet = [expression for expression in asked if not prometheus.value(expression)]
            # Nobody made an error, no administrator did anything, the daemon has not restarted, and
            # it leads no fleet.
            silent = {re.findall(r"trackd_\w+", expression)[0] for expression in quiet}
            assert {name for name in silent if not name.startswith("trackd_fleet_")} == {
                "trackd_errors_total",
                "trackd_admin_acts_total",
                "trackd_start_time_seconds",
            }
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(PATIENCE)


def rules_of(prometheus: Prometheus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = prometheus.ask("rules")["groups"][0]["rules"]
    return found


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        squares = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not squares & taken, panel["title"]
        taken |= squares
        numbers.add(panel["id"])
    assert len(numbers) == len(json.loads(DASHBOARD.read_text())["panels"])


def test_the_page_on_monitoring_tells_every_metric(families: list[list[Any]]) -> None:
    table = re.findall(
        r"(?m)^\| `(trackd_\w+)` \| (\w+) \| ([^|]*)\| (.*) \|$", MONITORING.read_text()
    )
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in table}
    expected = {
        f"{name}_total" if kind == "counter" else name: (kind, set(labels))
        for name, kind, _help, labels, _samples in families
    }
    assert told == expected


def test_the_names_keep_prometheus_s_conventions(families: list[list[Any]]) -> None:
    for name, kind, text, _labels, _samples in families:
        assert re.fullmatch(r"trackd_[a-z_]+", name)
        assert not name.endswith("_total"), "prometheus_client adds it"
        assert text.endswith("."), text
        if kind == "histogram":
            assert name.endswith(("_seconds", "_requests")), name
    assert exposition(families).endswith("\n")
