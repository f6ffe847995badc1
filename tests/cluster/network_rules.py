"""Decide whether NetworkPolicies let a connection through, as Kubernetes defines it.

All policies are of one namespace, that of the manifests. An endpoint is a pod with its labels, in
this namespace or in another one, or an address outside of the cluster.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HERE = "maml-ray"


@dataclass(frozen=True)
class Endpoint:
    """A pod by its labels and namespace, or an address outside."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = HERE
    address: str | None = None


def reaches(
    policies: Iterable[dict[str, Any]],
    source: Endpoint,
    target: Endpoint,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Return whether ``source`` may connect to a port of ``target``."""
    found = list(policies)
    return _allows(found, "Egress", source, target, port, protocol) and _allows(
        found, "Ingress", target, source, port, protocol
    )


def _allows(
    policies: list[dict[str, Any]],
    direction: str,
    subject: Endpoint,
    other: Endpoint,
    port: int,
    protocol: str,
) -> bool:
    if subject.namespace != HERE or subject.address is not None:
        return True
    selecting = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], subject.labels)
    ]
    if not selecting:
        return True
    peers = {"Ingress": "from", "Egress": "to"}[direction]
    return any(
        _has_port(rule, port, protocol)
        and (peers not in rule or any(_is_peer(peer, other) for peer in rule[peers]))
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def _has_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return "ports" not in rule or any(
        each.get("protocol", "TCP") == protocol
        and each["port"] <= port <= each.get("endPort", each["port"])
        for each in rule["ports"]
    )


def _is_peer(peer: dict[str, Any], other: Endpoint) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        block = peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(each) for each in block.get("except", ())
        )
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        name = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(peer["namespaceSelector"], name):
            return False
    elif other.namespace != HERE:
        return False
    return _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    matches = selector.get("matchLabels", {}).items() <= dict(labels).items()
    return matches and all(_matches(each, labels) for each in selector.get("matchExpressions", ()))


def _matches(expression: dict[str, Any], labels: Mapping[str, str]) -> bool:
    assert expression["operator"] == "In"  # no other is used
    return labels.get(expression["key"]) in expression["values"]
