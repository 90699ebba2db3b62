"""The dashboard and the alerts ask only for metrics, labels and values that a real bridge has."""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import pytest_asyncio
import yaml

from tests.bridge import running_bridge, visiting
from tests.conftest import fresh_database
from tests.needs import unavailable
from tests.scrape import Scrape, scraped

PROJECT = Path(__file__).parents[2]
ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = PROJECT / "deploy" / "grafana" / "chat-bridge.json"
RUNBOOK = "docs/operate/troubleshoot.md"

Labels = Mapping[str, set[str]]  # the values of each

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Question:
    """An expression for Prometheus, and the labels that words beside it speak of."""

    where: str
    expression: str
    spoken_of: Sequence[str]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


def questions() -> Iterator[Question]:
    for panel in panels():
        for target in panel["targets"]:
            # What Grafana puts in.
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            yield Question(panel["title"], expression, re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for alert in alerts():
        words = " ".join(alert["annotations"].values())
        yield Question(alert["alert"], alert["expr"], re.findall(r"\$labels\.(\w+)", words))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrape() -> AsyncGenerator[Scrape]:
    """The metrics of a bridge that has answered a message."""
    async with (
        fresh_database("18", template=True) as database,
        running_bridge(database) as bridge,
        visiting(bridge.url) as chat,
    ):
        await chat.send("hello")
        while not bridge.events("reply.delivered"):
            await asyncio.sleep(0.02)
        yield await scraped(bridge.url)


@pytest.fixture
def known(scrape: Scrape) -> Mapping[str, Labels]:
    """The labels of every sample, with the values they have."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in scrape.families:
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for name, value in (sample.labels | {"instance": ".*"}).items():
                labels[name].add(value)
    return found


def nodes(expression: Any) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return found


def faults(question: Question, known: Mapping[str, Labels]) -> Iterator[str]:
    """What is wrong with a question; nothing, if it can be answered."""
    found = nodes(promql_parser.parse(question.expression))
    selectors = [node for node in found if isinstance(node, promql_parser.VectorSelector)]
    ranges = [node.vector_selector.name for node in found if isinstance(node, promql_parser.MatrixSelector)]
    if not selectors:
        yield "asks for no metric"
    for selector in selectors:
        if selector.name not in known:
            yield f"there is no {selector.name}"
            continue
        labels = known[selector.name]
        for matcher in selector.matchers.matchers:
            is_pattern = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
            for value in matcher.value.split("|") if is_pattern else [matcher.value]:
                if value not in labels.get(matcher.name, ()):
                    yield f"{selector.name} has no {matcher.name}={value}"
        rises = re.search(r"_(total|bucket|count|sum)$", selector.name) is not None
        if rises is not (selector.name in ranges):
            yield f"{selector.name} {'needs a rate' if rises else 'has no rate'}"
    kept: set[str] = set()
    for node in found:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            kept |= set(node.modifier.labels)
            for selector in nodes(node.expr):
                if isinstance(selector, promql_parser.VectorSelector):
                    yield from (
                        f"{selector.name} has no {label}"
                        for label in node.modifier.labels
                        if label not in known.get(selector.name, ())
                    )
    aggregated = any(isinstance(node, promql_parser.AggregateExpr) for node in found)
    left = kept if aggregated else {label for one in selectors for label in known.get(one.name, ())}
    yield from (f"its answer has no {label}" for label in question.spoken_of if label not in left)


async def test_every_question_can_be_answered(known: Mapping[str, Labels]) -> None:
    assert [f"{each.where}: {fault}" for each in questions() for fault in faults(each, known)] == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("chat_bridge_turn_running", "there is no chat_bridge_turn_running"),
        ('rate(chat_bridge_turns_total{outcom="error"}[5m])', "chat_bridge_turns_total has no outcom=error"),
        ('rate(chat_bridge_turns_total{outcome=~"error|bad"}[5m])', "chat_bridge_turns_total has no outcome=bad"),
        ("sum by (platform) (rate(chat_bridge_turns_total[5m]))", "chat_bridge_turns_total has no platform"),
        ("chat_bridge_turns_total > 1", "chat_bridge_turns_total needs a rate"),
        ("rate(chat_bridge_turns_running[5m])", "chat_bridge_turns_running has no rate"),
        ("1 + 1", "asks for no metric"),
    ],
)
async def test_a_wrong_question_is_found(known: Mapping[str, Labels], expression: str, fault: str) -> None:
    assert list(faults(Question("", expression, ()), known)) == [fault]


async def test_words_about_a_label_that_is_gone_are_found(known: Mapping[str, Labels]) -> None:
    question = Question("", "sum(rate(chat_bridge_turns_total[5m]))", ["agent"])
    assert list(faults(question, known)) == ["its answer has no agent"]


async def test_every_alert_has_a_severity_and_a_place_in_the_docs() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"{RUNBOOK}#{alert['alert'].lower()}"
    page = (PROJECT / RUNBOOK).read_text(encoding="utf-8")
    assert re.findall(r"^### (ChatBridge\w+)$", page, re.MULTILINE) == names


async def test_the_panels_have_a_place_and_an_explanation_each() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in itertools.combinations([panel["gridPos"] for panel in everything], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["title"]
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


async def test_the_alerts_come_when_they_should_and_only_then() -> None:
    promtool = shutil.which("promtool") or unavailable("promtool is not installed")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"], cwd=ALERTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
