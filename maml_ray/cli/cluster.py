"""The commands about clusters: submit a run as a job, and look whether a cluster is fit for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maml_ray.cli.options import Overrides, Preset, SettingsFile
from maml_ray.common.errors import ResourceError
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings

if TYPE_CHECKING:
    from maml_ray.jobs.doctor import Finding
    from maml_ray.jobs.job_client import JobServer
    from maml_ray.jobs.packaging import Upload

WorkingDir = Annotated[
    Path | None,
    typer.Option(help="Folder to send along, e.g. with a task module of your own."),
]
Install = Annotated[
    bool, typer.Option(help="Have the nodes install what maml-ray needs, in the versions of here.")
]


def add_commands(app: typer.Typer) -> None:
    """Make the commands known."""
    for command in (submit, doctor):
        app.command()(command)


def submit(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Job server: http://HEAD:8265.  [default: RAY_ADDRESS, or this machine's cluster]"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of this name, or begin it.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Show the log until the job ends.")] = True,
    working_dir: WorkingDir = None,
    install: Install = True,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="REQUIREMENT", help="Have this installed as well; may be repeated."),
    ] = None,
) -> None:
    """Train on a Ray cluster, as a job, from a machine outside of it.

    This package, the settings and --working-dir are uploaded; the nodes need only Ray. The log is
    followed, and the exit code is the job's. Ctrl-C says what a second one does: it stops the
    job, which then writes its checkpoint. The same command with --resume goes on.

    [bold]Examples[/bold]

      maml-ray submit deploy.yaml --address http://head:8265 --set run.directory=/mnt/runs

      maml-ray submit deploy.yaml --set run.storage=s3://bucket/runs --resume
    """
    settings = _settings(settings_file, overrides, preset)
    # Imported here: Ray is slow to import.
    from maml_ray.jobs import job_client, log_follower, packaging, submission

    submission.check_lasting(settings)
    submission.check_task_goes_along(settings, with_folder=working_dir is not None)
    files = packaging.of_job(submission.job_settings(settings), working_dir)
    packaging.check_size(files)
    server = job_client.JobServer(address)
    _tell_shortage(server, settings)
    command = submission.train_command(settings, packaging.SETTINGS, resume=resume)
    job_id = _send(server, command, settings, files, _requirements(install, pip))
    if follow:
        raise typer.Exit(log_follower.follow(server, job_id))
    log_follower.say(f"follow it by: ray job logs --follow {job_id}")


def doctor(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster to look at, as for train; or http://HEAD:8265, as for submit: then "
            "a job looks.  [default: this machine]"
        ),
    ] = None,
    working_dir: WorkingDir = None,
    install: Install = True,
    deadline_s: Annotated[
        float, typer.Option(min=1.0, help="How long each question to the nodes may take.")
    ] = 60.0,
) -> None:
    """Look whether a cluster is fit for a run: one line a subject, with the remedy.

    Resources asked for and there, versions on all nodes, the learner's GPU, shared memory, storage,
    the packaging's size, video. Nothing is begun or changed. Exit code 4 when there is a problem.

    [bold]Examples[/bold]

      maml-ray doctor deploy.yaml --address auto

      maml-ray doctor deploy.yaml --address http://head:8265
    """
    settings = _settings(settings_file, overrides, preset)
    from maml_ray.jobs import doctor, job_client, log_follower, packaging, probes, submission
    from maml_ray.runtime.ray_session import connected

    findings: list[Finding] = []
    if not submission.in_job():  # which has been sent already
        files = packaging.of_job(submission.job_settings(settings), working_dir)
        findings.append(doctor.judge_upload(files.describe(), packaging.fits(files)))
        _print(findings[0])
        if address is not None and address.startswith(("http://", "https://")):
            submission.check_task_goes_along(settings, with_folder=working_dir is not None)
            packaging.check_size(files)
            look = submission.entrypoint(
                "doctor", packaging.SETTINGS, "--deadline-s", str(deadline_s)
            )
            server = job_client.JobServer(address)
            job_id = _send(server, look, settings, files, _requirements(install, None), "doctor-")
            raise typer.Exit(log_follower.follow(server, job_id))
    with connected(address or settings.cluster.address):
        for finding in probes.examine(settings, deadline_s):
            findings.append(finding)
            _print(finding)
    if any(finding.level is doctor.Level.PROBLEM for finding in findings):
        raise typer.Exit(ResourceError.exit_code)


def _settings(
    settings_file: Path | None, overrides: list[str] | None, preset: str | None
) -> Settings:
    """Settings, looked through for all that can be wrong with them on this machine."""
    from maml_ray.jobs.submission import check_storage
    from maml_ray.tasks.registry import resolve_tasks

    settings = load_settings(settings_file, preset=preset, overrides=overrides or ())
    resolve_tasks(settings.task)
    check_storage(settings)
    return settings


def _send(
    server: JobServer,
    entrypoint: str,
    settings: Settings,
    files: Upload,
    requirements: tuple[str, ...],
    kind: str = "",
) -> str:
    """Begin a job; its id."""
    from maml_ray.jobs import job_client, log_follower, packaging, submission

    job_id = submission.job_id(settings, kind)
    request = job_client.JobRequest(entrypoint, files, requirements, submission.metadata(settings))
    server.send(request, job_id)
    log_follower.say(
        f"job {job_id} submitted to {server.get_address()} ({packaging.megabytes(files.size)})"
    )
    return job_id


def _tell_shortage(server: JobServer, settings: Settings) -> None:
    """What the cluster lacks now is said; whether more may come, the job finds out."""
    from maml_ray.jobs import doctor, log_follower

    finding = doctor.judge_resources(settings.cluster, server.resources())
    if finding.level is not doctor.Level.OK:
        log_follower.say(str(finding))


def _requirements(install: bool, more: list[str] | None) -> tuple[str, ...]:
    from maml_ray.jobs.requirements import pinned_requirements

    return (*(pinned_requirements() if install else ()), *(more or ()))


def _print(finding: Finding) -> None:
    print(finding, flush=True)
