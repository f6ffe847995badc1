"""Settings of a service: every argument is checked, and serve.yaml agrees with the code."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from maml_ray.common.errors import UserError
from maml_ray.config.settings import SettingsError
from maml_ray.serving.http.access import TOKEN_VARIABLE, load_token_digest, token_matches
from maml_ray.serving.ray_serve import build_app
from maml_ray.serving.settings import ServeSettings, parse_serve_settings, parse_user_config

FILE = Path(__file__).parents[2] / "cluster" / "serve.yaml"
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["run is missing"]),
        ({"run": "x", "replica": 2}, ["replica is not an argument", "'replicas'"]),
        ({"run": "x", "replicas": 0}, ["replicas = 0"]),
        ({"run": "x", "replicas": "two"}, ["replicas = 'two'"]),
        ({"run": ""}, ["run = ''"]),
        ({"run": "x", "max_age_s": "inf"}, ["max_age_s"]),
        ({"run": "x", "max_body_bytes": 10}, ["max_body_bytes = 10"]),
    ],
)
def test_an_argument_that_is_not_allowed_is_named(
    arguments: dict[str, Any], words: list[str]
) -> None:
    for check in (parse_serve_settings, build_app):
        with pytest.raises(SettingsError) as caught:
            check(arguments)
        assert all(word in str(caught.value) for word in words)


def test_arguments_may_be_strings_as_serve_run_passes_them() -> None:
    settings = parse_serve_settings(
        {"run": "x", "replicas": "2", "max_age_s": "60", "checkpoint": 120}
    )
    assert (settings.replicas, settings.max_age_s, settings.checkpoint) == (2, 60.0, "120")


def test_a_user_config_is_checked() -> None:
    assert parse_user_config({"checkpoint": 120}).checkpoint == "120"
    for wrong in ({"checkpint": 1}, {"checkpoint": None}, {"checkpoint": ""}, 3):
        with pytest.raises(SettingsError, match="user_config"):
            parse_user_config(wrong)


def test_the_config_file_lists_every_argument_with_its_default() -> None:
    content = yaml.safe_load(FILE.read_text())
    _assert_known(content, ServeDeploySchema)
    deployed = ServeDeploySchema.model_validate(content)
    (application,) = deployed.applications
    assert application.args.keys() == ServeSettings.model_fields.keys() - {
        "checkpoint",  # these are under deployments, where they can be changed
        "replicas",
        "adapters",
    }
    settings = parse_serve_settings(application.args)
    defaults = ServeSettings(run=settings.run)
    assert settings == defaults
    names = {one.name: one for one in application.deployments}
    assert parse_user_config(names["PolicyStore"].user_config).checkpoint == defaults.checkpoint
    app = build_app(application.args)
    assert set(names) == set(_deployments(app))
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (build_app.__module__, build_app.__name__)
    assert deployed.http_options.host == "127.0.0.1"


def _deployments(app: Any) -> dict[str, Any]:
    """Return an application's deployments by name, including those bound as arguments."""
    deployment = app._bound_deployment
    found = {deployment.name: deployment}
    for argument in deployment.init_args:
        if hasattr(argument, "_bound_deployment"):
            found |= _deployments(argument)
    return found


def _assert_known(content: Any, model: type[BaseModel]) -> None:
    """Check that every key is a field: Ray's own schema accepts unknown keys."""
    for key, value in content.items():
        assert key in model.model_fields, f"{key} is not a key of {model.__name__}"
        kinds = [
            one
            for one in _models(model.model_fields[key].annotation)
            if isinstance(value, dict) or (isinstance(value, list) and value)
        ]
        for part in value if isinstance(value, list) else [value]:
            if kinds and isinstance(part, dict):
                _assert_known(part, kinds[0])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def private_file(path: Path, content: str) -> Path:
    path.touch(0o600)
    path.write_text(content)
    return path


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert load_token_digest(None) is None
    file = private_file(tmp_path / "token", TOKEN + "\n")
    digest = load_token_digest(str(file))
    assert digest == hashlib.sha256(TOKEN.encode()).digest()
    monkeypatch.setenv(TOKEN_VARIABLE, "f" * 32)
    assert load_token_digest(None) == hashlib.sha256(b"f" * 32).digest()
    assert load_token_digest(str(file)) == digest  # the file takes precedence over the environment
    assert token_matches(b"Bearer " + TOKEN.encode(), digest)
    assert token_matches(b"bearer  " + TOKEN.encode(), digest)
    for wrong in (b"", b"Bearer", TOKEN.encode(), b"Basic " + TOKEN.encode(), b"Bearer \xff"):
        assert not token_matches(wrong, digest)


def test_an_invalid_token_is_an_error_not_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("", "  \n", "short", "ä" * 20):
        monkeypatch.setenv(TOKEN_VARIABLE, content)
        with pytest.raises(UserError, match="16 ASCII characters"):
            load_token_digest(None)
        private_file(tmp_path / "token", content)
        with pytest.raises(UserError, match="token file"):
            load_token_digest(str(tmp_path / "token"))
    with pytest.raises(UserError, match="No such file"):
        load_token_digest(str(tmp_path / "nowhere"))


def test_a_token_file_that_others_can_read_is_refused_with_the_command_that_mends_it(
    tmp_path: Path,
) -> None:
    file = private_file(tmp_path / "my token", TOKEN)
    for mode in (0o400, 0o600, 0o700):
        file.chmod(mode)
        assert load_token_digest(str(file)) is not None
    for mode in (0o644, 0o604, 0o602, 0o660, 0o610, 0o666):
        file.chmod(mode)
        with pytest.raises(UserError, match=f"mode {mode:04o}: chmod 600 '.*/my token'$"):
            load_token_digest(str(file))
    link = tmp_path / "link"  # so Kubernetes mounts a secret
    link.symlink_to(file)
    with pytest.raises(UserError, match="mode 0666"):
        load_token_digest(str(link))
    file.chmod(0o600)
    assert load_token_digest(str(link)) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, which needs root")
def test_a_token_file_of_root_may_be_readable_by_its_group(tmp_path: Path) -> None:
    """As kubelet mounts a secret for a container that is not root's, by its fsGroup."""
    file = private_file(tmp_path / "token", TOKEN)
    file.chmod(0o440)
    assert load_token_digest(str(file)) is not None
    file.chmod(0o444)
    os.chown(file, 1000, 100)
    with pytest.raises(UserError, match=r"chmod 600 .*defaultMode: 0400"):
        load_token_digest(str(file))
    file.chmod(0o440)
    with pytest.raises(UserError, match="mode 0440"):
        load_token_digest(str(file))
