"""Jobs of a Ray cluster: sending one, and following it to its end.

The job server is an HTTP server on the cluster's head. Nothing here waits on it without a deadline,
and a job goes on by itself when whoever follows it has gone.
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
from maml_ray.runtime.ray_session import check_reachable

STOP_WAIT_S = 60
"""Seconds that Ray gives a job that it stops: for the update that is under way and a checkpoint.
Without a word from the job it would be 3."""
INSTALL_TIMEOUT_S = 1800
"""Seconds that a node may take to install a job's requirements: PyTorch for a GPU is large."""
_REQUEST_S = 20.0
_UPLOAD_S = 300.0
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that tell of every package and connection."""
_URL = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class JobRequest:
    """What a cluster is asked to run.

    Attributes:
        entrypoint: the command.
        upload: the files of its working directory.
        requirements: what its nodes are to install; none where they have it.
        metadata: shown in the dashboard and by ``ray job list``.
    """

    entrypoint: str
    upload: Upload
    requirements: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self, archive: Path) -> dict[str, Any]:
        """The environment of the job's processes, with its files in ``archive``."""
        environment: dict[str, Any] = {
            "working_dir": str(archive),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            "config": {"setup_timeout_seconds": INSTALL_TIMEOUT_S},
        }
        if self.requirements:
            environment["pip"] = list(self.requirements)
        return environment


class JobServer(JobSubmissionClient):
    """Ray's client, with a deadline for every request.

    Args:
        address: ``http://host:8265``, or the cluster's own address; None for ``RAY_ADDRESS`` or the
            cluster of this machine.

    Raises:
        ResourceError: no job server answers there.
    """

    def __init__(self, address: str | None) -> None:
        if address is not None:
            os.environ[_URL] = address  # Ray lets the environment win over what it is told
        if address not in (None, "auto") and "://" not in str(address):
            check_reachable(str(address))
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with told(address):
            super().__init__(address)

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return self._server_ray_version or "unknown"

    def resources(self) -> dict[str, float]:
        """What the cluster's living nodes have, all together.

        Raises:
            ResourceError: the server did not answer.
        """
        total: Counter[str] = Counter()
        with told(self._address):
            answer = self._do_request("GET", "/api/v0/nodes", params={"detail": 1, "limit": 10_000})
            answer.raise_for_status()
            for node in answer.json()["data"]["result"]["result"]:
                if node["state"] == "ALIVE":
                    total.update(node["resources_total"])
        return dict(total)

    def send(self, request: JobRequest, job_id: str) -> None:
        """Upload and begin a job.

        Raises:
            ResourceError: the server refused it, or did not answer.
        """
        with tempfile.TemporaryDirectory() as folder, told(self._address):
            archive = Path(folder) / "upload.zip"
            request.upload.write(archive)
            self.submit_job(
                entrypoint=request.entrypoint,
                submission_id=job_id,
                runtime_env=request.runtime_env(archive),
                metadata=dict(request.metadata),
            )

    def look(self, job_id: str) -> JobDetails:
        """A job's state.

        Raises:
            ResourceError: the server did not answer, or does not know the job.
        """
        with told(self._address):
            return self.get_job_info(job_id)

    def stop(self, job_id: str) -> None:
        """Ask a job to end in good order.

        Raises:
            ResourceError: the server did not answer.
        """
        with told(self._address):
            self.stop_job(job_id)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        timeout = _UPLOAD_S if options.get("data") else _REQUEST_S
        return super()._do_request(method, endpoint, **{"timeout": timeout, **options})


@contextmanager
def told(address: str | None) -> Iterator[None]:
    """What a job server's client raises, as one sentence.

    Raises:
        ResourceError: in place of all of it.
    """
    where = f"at {address!r}" if address else "on this machine"
    try:
        yield
    except AuthenticationError as error:
        reason = escape_unprintable(" ".join(str(error).split()))[:160]
        raise ResourceError(
            f"the job server {where} wants a token: set RAY_AUTH_MODE=token ({reason})"
        ) from None
    except (requests.RequestException, ConnectionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ResourceError(
            f"no job server answers {where} ({reason}): give --address http://HEAD:8265, and see "
            "that the port is open from here (kubectl port-forward, ray dashboard)"
        ) from None
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ResourceError(f"the job server {where} refuses: {reason}") from None
