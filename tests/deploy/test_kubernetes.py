"""The files for Kubernetes: rendered by kubectl, valid by Kubernetes' own schemas, and in step with the bridge.

There is no cluster here: what only a cluster can say (scheduling, networks) is not tried.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml

from chat_bridge.production import risks
from chat_bridge.settings import SECRETS, Settings, load_settings, setting_names
from tests.bridge import running_bridge
from tests.needs import unavailable

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "deploy" / "kubernetes"
PAGE = PROJECT / "docs" / "operate" / "kubernetes.md"
OVERLAYS = ["base", "example"]
VERSIONS = ["1.27", "1.32", "1.37"]
MOUNTED = "/run/secrets/chat-bridge/"
NEEDED = ("Namespace", "ServiceAccount", "ConfigMap")
SECRET_VALUES = {
    "DATABASE_URL": "postgresql://agoric:5b8c1f0e6d7a49320c1e@db.example/agoric?sslmode=verify-full&sslrootcert=/run/tls/ca",
    "REDIS_URL": "rediss://:5b8c1f0e6d7a49320c1e@cache.example/0",
    "CHAT_BRIDGE_SECRET": "35d7e8a9f2b1d0c6468b02e7d59c1a3f",
    "CHAT_BRIDGE_API_KEY": "f3a1c95d7e20b8646c0d1b2f9a8e7d53",
}

Document = Mapping[str, Any]


@cache
def rendered(overlay: str) -> Sequence[Document]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        unavailable("kubectl is not installed")
    made = subprocess.run([kubectl, "kustomize", FOLDER / overlay], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def of_kind(overlay: str, kind: str) -> Document:
    """The first document of this kind."""
    return next(document for document in rendered(overlay) if document["kind"] == kind)


def pods(overlay: str) -> Sequence[Document]:
    """The pods of the Deployment and of the Job."""
    return [of_kind(overlay, kind)["spec"]["template"] for kind in ("Deployment", "Job")]


def environment(overlay: str, secrets: Path) -> dict[str, str]:
    """What the container sees, its secrets being in this folder."""
    for name, value in SECRET_VALUES.items():
        (secrets / name).write_text(value)
    data: dict[str, str] = of_kind(overlay, "ConfigMap")["data"]
    return {name: value.replace(MOUNTED, f"{secrets}/") for name, value in data.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_is_valid(overlay: str, version: str) -> None:
    for document in rendered(overlay):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_the_check_would_find_a_mistake() -> None:
    deployment = dict(of_kind("base", "Deployment"))
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_selectors_find_the_pods_they_mean(overlay: str) -> None:
    bridge, migration = (pod["metadata"]["labels"] for pod in pods(overlay))
    wanted = {
        "Deployment": of_kind(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        "Service": of_kind(overlay, "Service")["spec"]["selector"],
        "PodDisruptionBudget": of_kind(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    }
    spread = of_kind(overlay, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    selectors = [*wanted.values(), *(each["labelSelector"]["matchLabels"] for each in spread)]
    for selector in selectors:
        assert selector.items() <= bridge.items()
        assert not selector.items() <= migration.items(), "traffic must not go to the Job"
    policies = [document["spec"] for document in rendered(overlay) if document["kind"] == "NetworkPolicy"]
    named = [policy["podSelector"]["matchLabels"] for policy in policies]
    for labels in (bridge, migration):
        assert sum(selector.items() <= labels.items() for selector in named) == 1
    target = of_kind(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = of_kind(overlay, "Deployment")
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"], "it would fight with the autoscaler"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_refers_to_is_there(overlay: str) -> None:
    settings = of_kind(overlay, "ConfigMap")["metadata"]["name"]
    account = of_kind(overlay, "ServiceAccount")["metadata"]["name"]
    images = set[str]()
    for pod in pods(overlay):
        (container,) = pod["spec"]["containers"]
        images.add(container["image"])
        assert container["envFrom"] == [{"configMapRef": {"name": settings}}]
        assert pod["spec"]["serviceAccountName"] == account
        volumes = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts == {MOUNTED.rstrip("/"): "chat-bridge", "/run/tls": "chat-bridge-tls", "/tmp": None}
        (room,) = [volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "tmp"]
        assert room in ({"sizeLimit": "1Gi"}, {"sizeLimit": "3Gi"}), "a pod that takes uploads needs more than the Job"
    assert len(images) == 1, "the Job migrates for the very program that runs"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_job_needs_comes_before_it(overlay: str) -> None:
    def wave(document: Document) -> int:
        return int(document["metadata"].get("annotations", {}).get("argocd.argoproj.io/sync-wave", 0))

    job = of_kind(overlay, "Job")
    needed = [document for document in rendered(overlay) if document["kind"] in NEEDED]
    assert {"ServiceAccount", "ConfigMap"} <= {document["kind"] for document in needed}
    assert max(wave(document) for document in needed) < wave(job) < wave(of_kind(overlay, "Deployment"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_do_no_more_than_it_must(overlay: str) -> None:
    for pod in pods(overlay):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_known_and_fit_for_production(overlay: str, tmp_path: Path) -> None:
    environ = environment(overlay, tmp_path)
    known = {name for field in Settings.model_fields for name in setting_names(field)}
    secret = {name for field in SECRETS for name in setting_names(field)}
    assert {name for name in environ if name.removesuffix("_FILE") not in known} == set()
    assert {name for name in environ if name in secret} == set(), "secrets are files of the Secret"
    settings = load_settings(environ, None)
    assert settings.env == "production"
    assert list(risks(settings, {})) == []
    (container,) = of_kind(overlay, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_time_to_hand_back_what_runs(overlay: str, tmp_path: Path) -> None:
    settings = load_settings(environment(overlay, tmp_path), None)
    spec = of_kind(overlay, "Deployment")["spec"]["template"]["spec"]
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= pause + settings.drain_seconds + 10


async def test_a_bridge_with_these_settings_has_the_paths_and_the_metric(database: str, tmp_path: Path) -> None:
    environ = environment("base", tmp_path)
    (tmp_path / "DATABASE_URL").write_text(database)
    deployment = of_kind("base", "Deployment")["spec"]["template"]
    (container,) = deployment["spec"]["containers"]
    probes = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    scraped = deployment["metadata"]["annotations"]["prometheus.io/path"]
    ingress = of_kind("example", "Ingress")["spec"]["rules"][0]["http"]["paths"]
    pages = {each["path"] for each in ingress if each["pathType"] == "Exact"}
    own = {"CHAT_BRIDGE_HOST": "127.0.0.1", "PORT": "0", "CHAT_BRIDGE_API_KEY": "", "CHAT_BRIDGE_SECRET": ""}
    async with running_bridge(None, **{**environ, **own}) as bridge, aiohttp.ClientSession(bridge.url) as http:
        for path in (*probes, *pages):
            async with http.get(path) as response:
                assert response.status == 200, path
        async with http.get(scraped) as response:
            metrics = await response.text()
    (metric,) = of_kind("base", "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"\n{name} " in metrics
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"] == {"as": name}
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_the_ingress_shows_nothing_that_is_for_operators() -> None:
    paths = [each["path"] for each in of_kind("example", "Ingress")["spec"]["rules"][0]["http"]["paths"]]
    assert "/chat" in paths
    for private in ("/metrics", "/readyz", "/health", "/docs", "/api/v1/sessions", "/api/v1/dead-letters"):
        assert not any(private == path or private.startswith(f"{path.rstrip('/')}/") for path in paths if path != "/")


def test_the_page_tells_of_every_value() -> None:
    page = PAGE.read_text()
    values = {*of_kind("example", "ConfigMap")["data"], *SECRET_VALUES}
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.*")}
    for named in (*values, *files, "averageValue", "maxReplicas", "terminationGracePeriodSeconds"):
        assert f"`{named}`" in page, named
