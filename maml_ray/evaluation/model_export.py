"""Export a policy for other runtimes, as ONNX or TorchScript, and compare the file with it.

The file holds everything from an environment's observation to its action: normalization and
clipping of observations, the network, and the scale and bounds of actions, or the choice of the
most probable discrete action.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.locations import parse_path
from maml_ray.common.normalization import LIMIT
from maml_ray.common.versions import own_version
from maml_ray.evaluation.agent import Agent
from maml_ray.policies.action_sampler import to_env_actions
from maml_ray.policies.spec import PolicySpec

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
"""Suffix of the files of each format."""
_OPSET, _IR_VERSION = 17, 8  # of 2022: they have all that the graph needs, and older runtimes read
_OBSERVATIONS = 1000
_ACTION_MAP = ("action_factor", "action_offset", "action_low", "action_high")
_TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value if that is above 1."""
Float32 = NDArray[np.float32]
Floating = NDArray[np.floating]
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ExportedModel:
    """An exported policy.

    Attributes:
        path: file.
        format: ``onnx`` or ``torchscript``.
        inputs: shape and type of the input by name; n is any number of observations.
        outputs: shape and type of each output by name, in order.
        difference: largest absolute difference from the policy's outputs at 1,000 observations;
            None if ``onnxruntime`` is not installed, so that the file could not be run.
    """

    path: Path
    format: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: float | None


def export_model(agent: Agent, path: str | Path, *, format: str | None = None) -> ExportedModel:
    """Write a policy to a file that ONNX runtimes, or programs with PyTorch, can run.

    The input is ``observations`` (n, D), unnormalized: float32, or float64 if float32 would lose
    how they vary. A continuous policy has the outputs ``actions`` (n, A) float32, the mean actions
    as the environment takes them, and ``action_std`` (A,), the standard deviation of sampled
    actions before they are clipped to the environment's bounds. A discrete policy has ``actions``
    (n,) int64, the most probable ones, and ``log_probs`` (n, A) of all. A TorchScript module
    returns both as a tuple.

    The file is run at 1,000 observations and kept only if its outputs are the policy's.

    Args:
        agent: the policy, adapted or not.
        path: file to write; an existing one is replaced.
        format: ``onnx`` or ``torchscript``; by default according to the suffix of ``path``, which
            is ``.onnx`` or ``.pt``.

    Raises:
        UserError: the format is unknown, a package for it is not installed, or the file computes
            other actions than the policy.
        RunDirError: the file cannot be written.
    """
    path = parse_path(path, "path")
    format = check_format(path, format)
    write, run = (_write_onnx, _run_onnx) if format == "onnx" else (_write_script, _run_script)
    observations = _test_observations(agent)
    temporary = path.with_name(f".{path.stem[:100]}.{os.getpid()}.partial")
    try:
        write(agent, temporary)
        found = run(temporary, observations)
        difference = None if found is None else _compare(agent, found, observations)
        os.replace(temporary, path)
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    kind = _input_type(agent).__name__
    inputs = {"observations": f"(n, {agent.spec.observation_size}) {kind}"}
    return ExportedModel(path, format, inputs, _describe_outputs(agent.spec), difference)


def check_format(path: Path, format: str | None) -> str:
    """Return the format of a file to export to, before anything is computed for it.

    Raises:
        UserError: it is unknown, or not said by the suffix.
        RunDirError: the file cannot be written there.
    """
    if format is None:
        by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
        if path.suffix not in by_suffix:
            raise UserError(f"{path} must end in .onnx, or in .pt for TorchScript")
        format = by_suffix[path.suffix]
    if format not in SUFFIXES:
        raise UserError(f"format {format!r:.40} is not known: there are onnx and torchscript")
    if path.is_dir() or not path.parent.is_dir():
        raise RunDirError(f"{path} cannot be written: name a file in an existing directory")
    return format


def _describe_outputs(spec: PolicySpec) -> dict[str, str]:
    size = spec.action_size
    if spec.discrete:
        return {"actions": "(n,) int64", "log_probs": f"(n, {size}) float32"}
    return {"actions": f"(n, {size}) float32", "action_std": f"({size},) float32"}


def _test_observations(agent: Agent) -> Floating:
    """Draw observations (1000, D), a quarter of them so far out that most are clipped."""
    rng = np.random.default_rng(0)
    spread = np.repeat([1.0, 3.0, 1.0, 30.0], _OBSERVATIONS // 4)[:, None]
    drawn = spread * rng.standard_normal((_OBSERVATIONS, agent.spec.observation_size))
    if agent.normalizer is not None:
        drawn = agent.normalizer.mean + drawn / agent.normalizer.scale
    return drawn.astype(_input_type(agent))


def _input_type(agent: Agent) -> type[np.floating]:
    """Return the type of the observations: float64 if float32 would lose how they vary."""
    needs_float64 = agent.normalizer is not None and agent.normalizer.needs_float64
    return np.float64 if needs_float64 else np.float32


def _compare(agent: Agent, found: Outputs, observations: Floating) -> float:
    """Return the largest difference between the outputs of a file and of the policy.

    Raises:
        UserError: it is too large.
    """
    largest = 0.0
    for name, value in _expected_outputs(agent, found, observations).items():
        same_shape = found[name].shape == value.shape
        difference = float(np.abs(found[name] - value).max()) if same_shape else np.inf
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(value).max())):
            raise UserError(
                f"the exported file computes other {name} than the policy (difference "
                f"{difference:.2g}): it was not kept"
            )
        largest = max(largest, difference)
    return largest


def _expected_outputs(agent: Agent, found: Outputs, observations: Floating) -> Outputs:
    policy, spec = agent.policy, agent.spec
    outputs = policy.forward(observations)
    if not spec.discrete:
        return {
            "actions": to_env_actions(spec, outputs),
            "action_std": policy.std * spec.action_map.factor,
        }
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return {
        "log_probs": shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)),
        # By the file's own numbers: two that are equal up to rounding may change places.
        "actions": found["log_probs"].argmax(axis=1) + spec.first_action,
    }


def _write_onnx(agent: Agent, path: Path) -> None:
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        raise UserError(
            "ONNX needs the packages onnx and onnxruntime: pip install 'maml-ray[export]'"
        ) from None
    spec, graph = agent.spec, _OnnxGraph(onnx)
    value = "observations"
    if agent.normalizer is not None:
        value = graph.add("Sub", value, agent.normalizer.mean)
        if agent.normalizer.needs_float64:
            value = graph.add("Cast", value, to=onnx.TensorProto.FLOAT)
        value = graph.add("Mul", value, agent.normalizer.scale)
        value = graph.add("Clip", value, np.float32(-LIMIT), np.float32(LIMIT))
    for name in spec.layer_names:
        weight, bias = agent.parameters[f"{name}.weight"], agent.parameters[f"{name}.bias"]
        value = graph.add("Gemm", value, weight, bias, transB=1)
        if name != spec.head:
            value = graph.add("Relu" if spec.activation == "relu" else "Tanh", value)
    if spec.discrete:
        log_probs = graph.add("LogSoftmax", value, output="log_probs", axis=1)
        chosen = graph.add("ArgMax", log_probs, axis=1, keepdims=0)
        graph.add("Add", chosen, np.int64(spec.first_action), output="actions")
    else:
        factor, offset, low, high = _float32_action_map(spec)
        value = graph.add("Add", graph.add("Mul", value, factor), offset)
        graph.add("Min", graph.add("Max", value, low), high, output="actions")
        graph.add("Identity", graph.constant(agent.policy.std * factor), output="action_std")
    path.write_bytes(graph.serialize(agent))


def _float32_action_map(spec: PolicySpec) -> tuple[Float32, ...]:
    """Return factor, offset and bounds (A,) of the map to the environment's actions."""
    with np.errstate(over="ignore"):  # a bound beyond float32 is none
        return tuple(each.astype(np.float32) for each in spec.action_map)


class _OnnxGraph:
    """Builds a model node by node."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, array: Any) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(
        self, operator: str, value: str, *constants: Any, output: str = "", **attributes: Any
    ) -> str:
        """Apply an operator to a value and constants, and return the name of its output."""
        output = output or f"value_{len(self._nodes)}"
        inputs = [value, *map(self.constant, constants)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def serialize(self, agent: Agent) -> bytes:
        """Return the model, with the policy's inputs and outputs, as bytes."""
        helper, spec = self._onnx.helper, agent.spec
        types = self._onnx.TensorProto
        shapes: dict[str, tuple[int, list[Any]]] = (
            {"actions": (types.INT64, ["n"]), "log_probs": (types.FLOAT, ["n", spec.action_size])}
            if spec.discrete
            else {
                "actions": (types.FLOAT, ["n", spec.action_size]),
                "action_std": (types.FLOAT, [spec.action_size]),
            }
        )
        kind = types.DOUBLE if _input_type(agent) is np.float64 else types.FLOAT
        observations = (kind, ["n", spec.observation_size])
        graph = helper.make_graph(
            self._nodes,
            "policy",
            [helper.make_tensor_value_info("observations", *observations)],
            [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()],
            self._constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="maml_ray",
            producer_version=own_version(),
            doc_string=f"{agent.settings.task.name}, {agent.adaptation_steps} inner steps",
        )
        self._onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
        return content


def _run_onnx(path: Path, observations: Floating) -> Outputs | None:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"observations": observations}), strict=True))


def _write_script(agent: Agent, path: Path) -> None:
    """Trace the definition of the policy that training differentiates."""
    import torch

    from maml_ray.maml.distributions import Categorical, distribution

    spec, normalizer = agent.spec, agent.normalizer

    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in spec.shapes():
                value = torch.tensor(agent.parameters[name])
                self.register_buffer(name.replace(".", "_"), value)
            if normalizer is not None:
                self.register_buffer("observation_mean", torch.tensor(normalizer.mean))
                self.register_buffer("observation_scale", torch.tensor(normalizer.scale))
            if not spec.discrete:
                for name, array in zip(_ACTION_MAP, _float32_action_map(spec), strict=True):
                    self.register_buffer(name, torch.tensor(array))

        def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            buffers = dict(self.named_buffers())
            if normalizer is not None:
                mean, scale = buffers["observation_mean"], buffers["observation_scale"]
                centered = (observations.to(mean.dtype) - mean).to(scale.dtype)
                observations = (centered * scale).clamp(-LIMIT, LIMIT)
            parameters = {name: buffers[name.replace(".", "_")] for name in spec.shapes()}
            policy = distribution(spec, parameters, observations)
            if isinstance(policy, Categorical):
                return policy.log_probs.argmax(-1) + spec.first_action, policy.log_probs
            factor, offset, low, high = (buffers[name] for name in _ACTION_MAP)
            actions = (policy.mean * factor + offset).clamp(low, high)
            return actions, policy.log_std.exp() * factor

    example = torch.zeros(2, spec.observation_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch recommends torch.export, which C++ cannot load
        torch.jit.save(torch.jit.trace(Policy(), example), str(path))


def _run_script(path: Path, observations: Float32) -> Outputs:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = torch.jit.load(str(path))(torch.tensor(observations))
    second = "log_probs" if outputs[0].dtype == torch.int64 else "action_std"
    return {"actions": outputs[0].numpy(), second: outputs[1].numpy()}
