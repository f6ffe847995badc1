"""Talk to the job server of a Ray cluster, an HTTP server on its head node.

Every request has a timeout. A submitted job does not depend on this client.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from maml_ray.common.errors import ResourceError, escape_unprintable
from maml_ray.jobs.packaging import Upload
from maml_ray.runtime.connection.address import ADDRESS_VARIABLE, ClusterAddress, check_address

STOP_GRACE_S = 60
"""Seconds until Ray kills a job that it was asked to stop, instead of its default of 3: time to
finish the current update and write a checkpoint."""
INSTALL_TIMEOUT_S = 1800
"""Seconds that a node may take to install requirements: PyTorch for a GPU is large."""
_REQUEST_TIMEOUT_S = 20.0
_UPLOAD_TIMEOUT_S = 300.0
_VERBOSE_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers with a line for every package and connection."""
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class JobRequest:
    """A job to submit.

    Attributes:
        entrypoint: its shell command.
        upload: the files of its working directory.
        requirements: packages that the nodes install.
        metadata: shown in the dashboard and by ``ray job list``.
    """

    entrypoint: str
    upload: Upload
    requirements: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self, archive: Path) -> dict[str, Any]:
        """Return the runtime environment of the job, whose files are in ``archive``."""
        environment: dict[str, Any] = {
            "working_dir": str(archive),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)},
            "config": {"setup_timeout_seconds": INSTALL_TIMEOUT_S},
        }
        if self.requirements:
            environment["pip"] = list(self.requirements)
        return environment


class JobClient(JobSubmissionClient):
    """Ray's job client with a timeout for every request and errors in one sentence.

    Args:
        address: ``http://host:8265``, or the cluster's own address; None for
            ``RAY_API_SERVER_ADDRESS``, ``RAY_ADDRESS`` or this machine's cluster.

    Raises:
        ResourceError: no job server answers.
    """

    def __init__(self, address: str | None) -> None:
        found = _find_server(address)
        if not found.value.startswith(("http://", "https://")):
            check_address(found)
        os.environ[_ADDRESS_VARIABLE] = found.value  # Ray prefers the variable to the argument
        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _translate_errors(str(found)):
            super().__init__(found.value)

    @property
    def ray_version(self) -> str:
        """Ray's version on the cluster."""
        return self._server_ray_version or "unknown"

    def resources(self) -> dict[str, float]:
        """Return the total resources of all nodes that are alive.

        Raises:
            ResourceError: the server does not answer.
        """
        total: Counter[str] = Counter()
        with _translate_errors(repr(self._address)):
            answer = self._do_request("GET", "/api/v0/nodes", params={"detail": 1, "limit": 10_000})
            answer.raise_for_status()
            for node in answer.json()["data"]["result"]["result"]:
                if node["state"] == "ALIVE":
                    total.update(node["resources_total"])
        return dict(total)

    def submit(self, request: JobRequest, job_id: str) -> None:
        """Upload and start a job.

        Raises:
            ResourceError: the server refuses it or does not answer.
        """
        with tempfile.TemporaryDirectory() as folder, _translate_errors(repr(self._address)):
            archive = Path(folder) / "upload.zip"
            request.upload.write(archive)
            self.submit_job(
                entrypoint=request.entrypoint,
                submission_id=job_id,
                runtime_env=request.runtime_env(archive),
                metadata=dict(request.metadata),
            )

    def job_info(self, job_id: str) -> JobDetails:
        """Return the status of a job.

        Raises:
            ResourceError: the server does not answer, or does not know the job.
        """
        with _translate_errors(repr(self._address)):
            return self.get_job_info(job_id)

    def stop(self, job_id: str) -> None:
        """Ask a job to stop in good order.

        Raises:
            ResourceError: the server does not answer.
        """
        with _translate_errors(repr(self._address)):
            self.stop_job(job_id)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        timeout = _UPLOAD_TIMEOUT_S if options.get("data") else _REQUEST_TIMEOUT_S
        return super()._do_request(method, endpoint, **{"timeout": timeout, **options})


def _find_server(address: str | None) -> ClusterAddress:
    """Return the address of the job server, or of its cluster, and where it comes from."""
    variables = ((name, os.environ.get(name)) for name in (_ADDRESS_VARIABLE, ADDRESS_VARIABLE))
    for source, value in (("--address", address), *variables):
        if value:
            return ClusterAddress(value, source)
    return ClusterAddress("auto", "--address")


@contextmanager
def _translate_errors(where: str) -> Iterator[None]:
    """Raise a ResourceError, with one sentence, for any error of Ray's job client."""
    try:
        yield
    except AuthenticationError as error:
        reason = escape_unprintable(" ".join(str(error).split()))[:160]
        raise ResourceError(
            f"the job server at {where} requires a token: set RAY_AUTH_MODE=token ({reason})"
        ) from None
    except (requests.RequestException, ConnectionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ResourceError(
            f"no job server answers at {where} ({reason}): set --address http://HEAD:8265, and "
            "check that the port is reachable from here (kubectl port-forward, ray dashboard)"
        ) from None
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ResourceError(f"the job server at {where} refused the request: {reason}") from None
