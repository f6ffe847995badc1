"""Nodes of a deployed service die under load: what is in flight fails, and policies stay."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.chaos.callers import Calls, Request, calling, post
from tests.chaos.machine import Machine, machine
from tests.ports import free_port
from tests.small_runs import run_of, settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SERVE_YAML = Path(__file__).parents[2] / "cluster" / "serve.yaml"
ACTING, ADAPTING = 16, 2
OBSERVATIONS = [[0.1 * i - 0.5 * j for i in range(17)] for j in range(3)]
ADAPT = {"task": {"direction": 1}, "measured_episodes": 0}
PATIENCE_S = 180.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    chosen = settings("half-cheetah-direction", policy={"action_scale": 1.0})
    return run_of(chosen, tmp_path / "run").path


@pytest.fixture
def cluster() -> Iterator[Machine]:
    """A head without CPUs, which has the proxy, and two nodes, which have the replicas."""
    with machine(nodes=0) as made:
        for _ in range(2):
            made.add_node(cpus=4)  # nominal: either node holds all replicas but one
        yield made


@pytest.mark.parametrize("with_store", [False, True], ids=["api", "api and policy store"])
def test_only_requests_in_flight_fail_when_a_node_dies(
    cluster: Machine, run: Path, with_store: bool
) -> None:
    """Both nodes have a replica that acts and one that adapts, and one has the policy store."""
    address = deploy(cluster, run, replicas=2)
    adapted = [adapt(address, seed) for seed in range(3)]
    actions = {name: act(address, name) for name in ["base", *adapted]}
    names = [list(actions)[i % len(actions)] for i in range(ACTING)]
    acting = [
        Request("/act", {"policy": name, "observations": OBSERVATIONS}, {"actions": actions[name]})
        for name in names
    ]
    with calling(address, acting + [Request("/adapt", ADAPT)] * ADAPTING) as calls:
        wait_for_answers(calls, after=0.0)
        (store,) = cluster.ids_with(replica("PolicyStore"))
        (other,) = set(cluster.ids_with(replica("PolicyApi"))) - {store}
        moment = time.monotonic()
        cluster.crash_node(store if with_store else other)
        wait_for_answers(calls, after=moment)
    for path in ("/act", "/adapt"):
        print(describe(calls.of(path), path, moment))
    for path, clients in (("/act", ACTING), ("/adapt", ADAPTING)):
        failures = Counter(call.client for call in calls.of(path).failed)
        assert len(failures) <= clients
        # Only what was in flight: the next request of the same client is answered.
        assert set(failures.values()) <= {1}, describe(calls.of(path), path, moment)
    for name, expected in actions.items():
        assert act(address, name) == expected


def test_adapted_policies_are_served_after_the_whole_cluster_is_lost(run: Path) -> None:
    with machine(nodes=1) as lost:
        lost.add_node(cpus=4)
        address = deploy(lost, run, replicas=1)
        actions = {name: act(address, name) for name in (adapt(address, seed) for seed in range(3))}
        lost.crash()
    with machine(nodes=0) as another:
        another.add_node(cpus=4)
        address = deploy(another, run, replicas=1)
        for name, expected in actions.items():
            assert act(address, name) == expected


def deploy(cluster: Machine, run: Path, *, replicas: int) -> str:
    """Deploy cluster/serve.yaml and return the service's host and port once it acts and adapts."""
    config, port = yaml.safe_load(SERVE_YAML.read_text(encoding="utf-8")), free_port()
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"]["run"] = str(run)
    for deployment in application["deployments"]:
        if deployment["name"] == "PolicyStore":
            deployment["ray_actor_options"] = {"num_cpus": 1}  # not on the head
        else:
            deployment |= {"num_replicas": replicas, "max_replicas_per_node": 1}
    file = run.with_name(f"serve-{port}.yaml")
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking"]
    done = subprocess.run(
        [*command, "--address", cluster.address, str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    address = f"127.0.0.1:{port}"
    wait_until(lambda: is_ready(cluster, address, replicas), "the service to be ready")
    return address


def is_ready(cluster: Machine, address: str, replicas: int) -> bool:
    try:
        act(address, "base")
    except (OSError, http.client.HTTPException, ValueError):  # also while it answers 503
        return False
    counts = [len(cluster.workers(replica(name))) for name in ("PolicyApi", "Adapter")]
    return counts == [replicas, replicas]


def replica(deployment: str) -> tuple[str, str]:
    """Return the prefixes of the title of a replica's process, when idle and when working."""
    title = f"ServeReplica:maml-ray:{deployment}"
    return title, title


def act(address: str, policy: str) -> list[list[float]]:
    """Return the actions of a policy at fixed observations."""
    body = {"policy": policy, "observations": OBSERVATIONS}
    actions: list[list[float]] = post(address, "/act", body)["actions"]
    return actions


def adapt(address: str, seed: int) -> str:
    """Adapt to a task and return the name of the policy."""
    return str(post(address, "/adapt", {**ADAPT, "seed": seed})["policy"])


def wait_for_answers(calls: Calls, *, after: float) -> None:
    """Wait until every client has been answered, and each that acts often."""

    def are_answered() -> bool:
        acted = calls.of("/act").answered_after(after)
        adapted = calls.of("/adapt").answered_after(after)
        return len(acted) == ACTING and min(acted.values()) >= 20 and len(adapted) == ADAPTING

    wait_until(are_answered, "an answer to every client")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.2)


def describe(calls: Calls, path: str, moment: float) -> str:
    """Return the failed requests, with seconds since the loss of the node."""
    failed = calls.failed
    lines = [
        f"{path}: {len(calls.all)} requests, {len(failed)} failed; longest without an answer "
        f"{calls.longest_gap_s:.2f} s, slowest answer {calls.longest_s:.2f} s"
    ]
    for call in failed:
        sent, ended = call.started - moment, call.ended - moment
        lines.append(
            f"  client {call.client}: {sent:+.2f} s to {ended:+.2f} s: {call.failure:.200}"
        )
    return "\n".join(lines)
