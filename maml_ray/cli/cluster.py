"""Commands for clusters: ``submit`` a run as a job, and check a cluster with ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maml_ray.cli.options import (
    Imports,
    Iterations,
    Overrides,
    Panel,
    Preset,
    RunSeed,
    SettingsFile,
    path_of,
    with_shorthands,
)
from maml_ray.common.errors import ResourceError
from maml_ray.config.loading import load_settings, recorded_folder
from maml_ray.config.settings import Settings

if TYPE_CHECKING:
    from maml_ray.jobs.doctor import Finding
    from maml_ray.jobs.job_client import JobClient
    from maml_ray.jobs.packaging import Upload

WorkingDir = Annotated[
    Path | None,
    typer.Option(
        help="Directory to upload, for example with your own task module; without what .gitignore "
        "and .rayignore name, and without files named token or .env.",
        parser=path_of("--working-dir"),
    ),
]
Install = Annotated[
    bool, typer.Option(help="Install maml-ray's dependencies on the nodes, in the local versions.")
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (submit, doctor):
        app.command(rich_help_panel=Panel.CLUSTERS)(command)


def submit(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    seed: RunSeed = None,
    iterations: Iterations = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Job server: http://HEAD:8265.",
            show_default="RAY_ADDRESS or this machine's cluster",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run of this name, or start it.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
    working_dir: WorkingDir = None,
    install: Install = True,
    pip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUIREMENT", help="Additional package to install on the nodes; repeatable."
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Train on a Ray cluster as a job, from a machine outside the cluster.

    Uploads this package, the settings and --working-dir; the nodes need only Ray. Prints the log
    and exits with the job's exit code. A second Ctrl-C stops the job, which then writes a
    checkpoint. The same command with --resume continues it.

    [bold]Examples[/bold]

      maml-ray submit deploy.yaml --address http://head:8265 --set run.directory=/mnt/runs

      maml-ray submit deploy.yaml --set run.storage=s3://bucket/runs --resume
    """
    overrides = with_shorthands(overrides, seed, iterations)
    settings = _load_checked_settings(settings_file, overrides, preset, imports)
    # Ray is slow to import.
    from maml_ray.jobs import job_client, log_follower, packaging, submission

    submission.check_survives_job(settings)
    submission.check_task_uploaded(settings, with_folder=working_dir is not None)
    files = packaging.job_upload(submission.job_settings(settings), working_dir)
    packaging.check_size(files)
    server = job_client.JobClient(address)
    _report_shortage(server, settings)
    command = submission.train_command(settings, packaging.SETTINGS_FILE, resume=resume)
    job_id = _send(server, command, settings, files, _requirements(install, pip))
    if follow:
        raise typer.Exit(log_follower.follow(server, job_id))
    log_follower.print_message(f"follow it with: ray job logs --follow {job_id}")


def doctor(
    settings_file: SettingsFile = None,
    overrides: Overrides = None,
    preset: Preset = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Cluster to check, as for train; or a job server http://HEAD:8265, as for "
            "submit, which runs the checks in a job.",
            show_default="this machine",
        ),
    ] = None,
    working_dir: WorkingDir = None,
    install: Install = True,
    deadline_s: Annotated[
        float, typer.Option(min=1.0, help="Time limit of each check on the nodes, in seconds.")
    ] = 60.0,
    imports: Imports = None,
) -> None:
    """Check whether a cluster can run the job: one line per check, with a fix for each problem.

    Checks resources, versions on all nodes, the learner's GPU, shared memory, storage, upload
    size and video. Changes nothing. Exits with code 4 if there is a problem.

    [bold]Examples[/bold]

      maml-ray doctor deploy.yaml --address auto

      maml-ray doctor deploy.yaml --address http://head:8265
    """
    settings = _load_checked_settings(settings_file, overrides, preset, imports)
    from maml_ray.jobs import doctor, job_client, log_follower, packaging, probes, submission
    from maml_ray.runtime.connection.connect import connected

    findings: list[Finding] = []
    if not submission.is_in_job():  # a job was uploaded already
        files = packaging.job_upload(submission.job_settings(settings), working_dir)
        findings.append(doctor.check_upload(files.describe(), files.is_small_enough))
        _print(findings[0])
        if address is not None and address.startswith(("http://", "https://")):
            submission.check_task_uploaded(settings, with_folder=working_dir is not None)
            packaging.check_size(files)
            entrypoint = submission.entrypoint(
                "doctor", packaging.SETTINGS_FILE, "--deadline-s", str(deadline_s)
            )
            server = job_client.JobClient(address)
            job_id = _send(
                server, entrypoint, settings, files, _requirements(install, None), "doctor-"
            )
            raise typer.Exit(log_follower.follow(server, job_id))
    with connected(address or settings.cluster.address):
        for finding in probes.run_checks(settings, deadline_s):
            findings.append(finding)
            _print(finding)
    if any(finding.level is doctor.Level.PROBLEM for finding in findings):
        raise typer.Exit(ResourceError.exit_code)


def _load_checked_settings(
    settings_file: Path | None,
    overrides: list[str] | None,
    preset: str | None,
    imports: list[str] | None,
) -> Settings:
    """Load settings and check all that can be checked on this machine."""
    from maml_ray.jobs.submission import check_storage_url
    from maml_ray.maml.losses import outer_objective
    from maml_ray.tasks.loading import import_modules, resolve_tasks

    import_modules(imports or (), recorded_folder(settings_file))
    settings = load_settings(settings_file, preset=preset, overrides=overrides or ())
    resolve_tasks(settings.task)
    outer_objective(settings.outer.objective)
    check_storage_url(settings)
    return settings


def _send(
    server: JobClient,
    entrypoint: str,
    settings: Settings,
    files: Upload,
    requirements: tuple[str, ...],
    kind: str = "",
) -> str:
    """Submit a job and return its id."""
    from maml_ray.jobs import job_client, log_follower, packaging, submission

    job_id = submission.new_job_id(settings, kind)
    request = job_client.JobRequest(entrypoint, files, requirements, submission.metadata(settings))
    server.submit(request, job_id)
    log_follower.print_message(
        f"job {job_id} submitted to {server.get_address()} ({packaging.format_size(files.size)})"
    )
    return job_id


def _report_shortage(server: JobClient, settings: Settings) -> None:
    """Report resources that the cluster lacks now; it may still grow, so the job decides."""
    from maml_ray.jobs import doctor, log_follower

    finding = doctor.check_resources(settings.cluster, server.resources())
    if finding.level is not doctor.Level.OK:
        log_follower.print_message(str(finding))


def _requirements(install: bool, extra: list[str] | None) -> tuple[str, ...]:
    from maml_ray.jobs.requirements import pinned_requirements

    return (*(pinned_requirements() if install else ()), *(extra or ()))


def _print(finding: Finding) -> None:
    print(finding, flush=True)
