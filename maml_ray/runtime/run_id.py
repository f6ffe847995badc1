"""What a run is called on its cluster."""

from __future__ import annotations

from dataclasses import dataclass

import ray


@dataclass(frozen=True, order=True)
class RunName:
    """A run's name, and the id of Ray's job, which tells two runs of the same name apart.

    Attributes:
        run: ``run.name`` of its settings.
        job: of its driver, as Ray's dashboard has it.
    """

    run: str
    job: str

    def __str__(self) -> str:
        return f"{self.run}/{self.job}"

    @property
    def namespace(self) -> str:
        """Ray namespace of the run's own actors."""
        return f"maml_ray/{self}"

    @classmethod
    def parse(cls, text: str) -> RunName | None:
        """The name that ``str`` has written; None where it is none."""
        run, slash, job = text.rpartition("/")
        return cls(run, job) if slash and run and job else None


def own_name(run: str) -> RunName:
    """The name of a run whose driver this process is."""
    return RunName(run, ray.get_runtime_context().get_job_id())
