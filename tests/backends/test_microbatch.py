"""Pieces of a meta-batch: the same numbers either way, the same bits on any number of threads."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maml_ray.backends.analytic_gradient import analytic_meta_gradient
from maml_ray.backends.dispatch import meta_gradient, meta_value
from maml_ray.backends.microbatch import Passes, bytes_a_task, passes_on
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.trust_region import fisher_of_adapted_policies
from maml_ray.maml.inner_loop import Order
from maml_ray.maml.meta_objective import MetaObjective
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_meta_gradient import GAUSSIAN, ORDERS, make_settings, problem
from tests.learning_runs import Run, change, same_state
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

PASSES = [Passes(1), Passes(2), Passes(3), Passes(9), Passes(1, 2), Passes(2, 3)]


def test_each_piece_once_and_in_order() -> None:
    batch = (torch.arange(5.0), (torch.arange(10.0).reshape(5, 2),))
    for passes in (Passes(2), Passes(2, 3)):
        found = passes.each(lambda piece: (piece[0].tolist(), piece[1][0][:, 1].tolist()), batch)
        assert found == [([0, 1], [1, 3]), ([2, 3], [5, 7]), ([4], [9])]
        joined = passes.joined(lambda piece: (2 * piece[0], (piece[1][0] + 1,)), batch)
        assert torch.equal(joined[0], 2 * batch[0])
        assert torch.equal(joined[1][0], batch[1][0] + 1)


def test_threads_work_side_by_side_and_each_by_itself() -> None:
    both = threading.Barrier(2, timeout=30.0)

    def meet(piece: tuple[Tensor]) -> int:
        both.wait()  # passed by nobody who is alone
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert Passes(1, 2).each(meet, (torch.zeros(2),)) == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        Passes(1, 2).each(lambda piece: 1 // len(piece[0][1:]), (torch.zeros(3),))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sampling", [0.0, 0.7])  # without it by hand, with ratios
@pytest.mark.parametrize(("outer", "inner"), [("ppo", "ratio"), ("trpo", "ratio"), ("ppo", "dice")])
def test_pieces_add_up_to_the_whole(
    outer: str, inner: str, sampling: float, order: Order, passes: Passes
) -> None:
    """By hand and by autograd: loss, gradient, all that is told, and TRPO's Fisher product."""
    settings = make_settings(outer, inner, 2, learn_inner_rates=True, e_maml_coefficient=sampling)
    parameters, batch = problem(settings)
    objective = MetaObjective(settings, GAUSSIAN, order)
    told = (objective, parameters, batch)
    loss, diagnostics, gradient = meta_gradient(*told)
    found = meta_gradient(*told, passes)
    torch.testing.assert_close(found, (loss, diagnostics, gradient), rtol=1e-12, atol=1e-14)
    alone = meta_value(*told, passes)
    torch.testing.assert_close(alone, (loss, diagnostics), rtol=1e-12, atol=1e-14)
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    direction = torch.randn_like(oracles.flat(parameters))
    product, whole = (
        fisher_of_adapted_policies(objective, leaves, batch, one) for one in (passes, Passes())
    )
    torch.testing.assert_close(product(direction), whole(direction), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_the_number_of_threads_changes_no_bit(
    small_settings: Settings, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "maml_ray.backends.microbatch._SAMPLES", 40
    )  # each small task by itself, as a large one
    run = Run(change(small_settings, "outer", objective=objective, tasks_per_minibatch=2))
    others = [MetaLearner(run.settings, run.learner.spec, threads=count) for count in (2, 3)]
    for _ in range(2):
        rollouts = run.collect()
        run.learner.update(rollouts)
        for other in others:
            other.update(rollouts)
            assert same_state(other.state(), run.learner.state())


@pytest.mark.parametrize(
    ("episodes", "horizon", "tasks"), [(10, 200, 1), (20, 200, 1), (10, 100, 2), (2, 20, 50)]
)
def test_on_a_cpu_small_tasks_go_in_company_whatever_the_threads(
    episodes: int, horizon: int, tasks: int
) -> None:
    sizes = [f"meta_batch.episodes={episodes}", f"task.horizon={horizon}"]
    for threads in (1, 16):
        passes = passes_on(
            torch.device("cpu"), load_settings(overrides=sizes), GAUSSIAN, threads=threads
        )
        assert (passes.tasks, passes.threads) == (tasks, threads)


def test_a_gpus_memory_is_shared_out_among_tasks() -> None:
    settings = load_settings(overrides=["cluster.learner_memory_gib=1.5"])
    spec = PolicySpec(17, 6, (64, 64), "tanh", 0.0, -3.0)
    passes = passes_on(torch.device("cuda"), settings, spec)
    assert passes.tasks == int(1.5 * 2**30 / bytes_a_task(settings, spec))
    assert passes.threads is None
    tight = load_settings(overrides=["cluster.learner_memory_gib=1e-6"])
    assert passes_on(torch.device("cuda"), tight, spec).tasks == 1


class _Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("hidden", [(64, 64), (100, 100, 100)])
def test_the_estimate_of_a_tasks_memory_covers_what_it_takes(
    hidden: tuple[int, ...], steps: int
) -> None:
    settings = load_settings(
        overrides=[f"inner.steps={steps}", "meta_batch.episodes=10", "task.horizon=50"]
    )
    spec = PolicySpec(17, 6, hidden, "tanh", 0.0, -3.0)
    batch = _one_task(settings, spec, 500)
    rng = np.random.default_rng(1)
    parameters = meta_oracles.tree_map(Tensor.float, oracles.random_parameters(spec, rng))
    with _Memory() as memory:
        analytic_meta_gradient(MetaObjective(settings, spec, "second"), parameters, batch)
    estimate = bytes_a_task(settings, spec)
    assert 0.6 * estimate < memory.most < estimate


@pytest.mark.usefixtures("batches")
def test_a_fisher_product_in_pieces_keeps_to_the_memory_of_one() -> None:
    """What the inner steps of the others leave behind is not kept, but worked out again."""
    settings, spec = load_settings(), PolicySpec(17, 6, (64, 64), "tanh", 0.0, -3.0)
    one = _one_task(settings, spec, 500)
    batch = meta_oracles.tree_map(lambda part: torch.cat([part] * 4), one)
    rng = np.random.default_rng(1)
    parameters = meta_oracles.tree_map(Tensor.float, oracles.random_parameters(spec, rng))
    direction = torch.ones_like(oracles.flat(parameters))

    def needed(passes: Passes) -> float:
        with _Memory() as memory:
            objective = MetaObjective(settings, spec, "second")
            fisher_of_adapted_policies(objective, parameters, batch, passes)(direction)
        return float(memory.most)

    assert needed(Passes(1)) < 0.6 * needed(Passes())


def _one_task(settings: Settings, spec: PolicySpec, samples: int) -> Any:
    """A batch of one task, in float32, its ten random samples repeated."""
    rng, times = np.random.default_rng(0), samples // 10
    parameters = oracles.random_parameters(spec, rng)
    batch = oracles.random_meta_batch(settings, spec, parameters, rng)

    def many(part: Tensor) -> Tensor:
        part = part[:1].float()
        if part.shape[1:] == (2, 5):
            return part.repeat(1, 1, times)
        return part.repeat(1, times, 1) if part.ndim == 3 else part

    return meta_oracles.tree_map(many, batch)
