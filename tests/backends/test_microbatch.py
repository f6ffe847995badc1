"""Pieces of a meta-batch: the same numbers either way, the same bits on any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.backends.microbatch import Microbatcher, bytes_per_task, make_microbatcher
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.maml.inner_loop import Order
from maml_ray.policies.spec import PolicySpec
from tests.backends.test_meta_gradient import GAUSSIAN, ORDERS, make_settings, problem
from tests.learning_runs import Run, change, same_state
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles

MICROBATCHERS = [Microbatcher(*sizes) for sizes in ((1,), (2,), (3,), (9,), (1, 2), (2, 3))]


def test_each_piece_once_and_in_order() -> None:
    batch = (torch.arange(5.0), (torch.arange(10.0).reshape(5, 2),))
    for chunks in (Microbatcher(2), Microbatcher(2, 3)):
        found = chunks.map_chunks(
            lambda piece: (piece[0].tolist(), piece[1][0][:, 1].tolist()), batch
        )
        assert found == [([0, 1], [1, 3]), ([2, 3], [5, 7]), ([4], [9])]
        joined = chunks.map_concat(lambda piece: (2 * piece[0], (piece[1][0] + 1,)), batch)
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
        assert Microbatcher(1, 2).map_chunks(meet, (torch.zeros(2),)) == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        Microbatcher(1, 2).map_chunks(lambda piece: 1 // len(piece[0][1:]), (torch.zeros(3),))


@pytest.mark.parametrize("microbatcher", [Microbatcher(), *MICROBATCHERS])
def test_each_task_is_visited_once(microbatcher: Microbatcher) -> None:
    visited: list[int] = []
    microbatcher.for_each_task(range(3, 8), visited.append)
    assert sorted(visited) == [3, 4, 5, 6, 7]


def test_tasks_are_visited_on_the_callers_thread_and_beside_it() -> None:
    both, threads = threading.Barrier(2, timeout=30.0), set[int]()

    def meet(task: int) -> None:
        both.wait()  # two threads must be in here at once
        threads.add(threading.get_ident())

    Microbatcher(1, 2).for_each_task(range(2), meet)
    assert threading.get_ident() in threads
    assert len(threads) == 2


@pytest.mark.parametrize("raising", ["caller", "helper"])
def test_an_error_on_either_thread_is_the_callers(raising: str) -> None:
    both, caller = threading.Barrier(2, timeout=30.0), threading.get_ident()

    def fail(task: int) -> None:
        both.wait()
        if (threading.get_ident() == caller) == (raising == "caller"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Microbatcher(1, 2).for_each_task(range(2), fail)


@pytest.mark.parametrize("microbatcher", MICROBATCHERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "outer", "inner", "e_maml"),
    [
        (CompiledBackend, "ppo", "ratio", 0.0),
        (CompiledBackend, "trpo", "ratio", 0.0),
        (AutogradBackend, "ppo", "ratio", 0.0),
        (AutogradBackend, "trpo", "ratio", 0.7),
        (AutogradBackend, "ppo", "dice", 0.7),
    ],
)
def test_chunks_add_up_to_the_whole(
    kind: type[Backend],
    outer: str,
    inner: str,
    e_maml: float,
    order: Order,
    microbatcher: Microbatcher,
) -> None:
    """Loss, gradient, diagnostics, and TRPO's Fisher product."""
    settings = make_settings(outer, inner, 2, learn_inner_rates=True, e_maml_coefficient=e_maml)
    parameters, batch = problem(settings)
    whole, chunked = (
        kind(settings.inner, settings.outer, GAUSSIAN, chunks)
        for chunks in (Microbatcher(), microbatcher)
    )
    expected = whole.value_and_grad(parameters, batch, order)
    found = chunked.value_and_grad(parameters, batch, order)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    value = chunked.value(parameters, batch, order)
    torch.testing.assert_close(value, expected[:2], rtol=1e-12, atol=1e-14)
    direction = torch.randn_like(oracles.flat(parameters))
    product, single = (
        backend.linearize(parameters, batch, order).fisher_product(direction)
        for backend in (chunked, whole)
    )
    torch.testing.assert_close(product, single, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("backend_kind")
@pytest.mark.parametrize("objective", ["ppo", "trpo"])
def test_the_number_of_threads_changes_no_bit(
    small_settings: Settings, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "maml_ray.backends.microbatch._MIN_SAMPLES", 40
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
        chunks = make_microbatcher(
            torch.device("cpu"), load_settings(overrides=sizes), GAUSSIAN, threads=threads
        )
        assert (chunks.chunk_size, chunks.threads) == (tasks, threads)


def test_a_gpus_memory_is_shared_out_among_tasks() -> None:
    settings = load_settings(overrides=["cluster.learner_memory_gib=1.5"])
    spec = PolicySpec(17, 6, (64, 64), "tanh", 0.0, -3.0)
    chunks = make_microbatcher(torch.device("cuda"), settings, spec)
    assert chunks.chunk_size == int(1.5 * 2**30 / bytes_per_task(settings, spec))
    assert chunks.threads is None
    tight = load_settings(overrides=["cluster.learner_memory_gib=1e-6"])
    assert make_microbatcher(torch.device("cuda"), tight, spec).chunk_size == 1


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that tensors made by ``function`` took at any moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    # The allocations, in order, are in no public result of the profiler.
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(max(accumulate(event.nbytes() for event in changes)))


@pytest.mark.parametrize("objective", ["ppo", "trpo"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("hidden", [(32,), (64, 64), (100, 100, 100)])
@pytest.mark.parametrize("part", ["all", "context"])
def test_the_estimate_of_a_tasks_memory_covers_what_it_takes(
    part: str, hidden: tuple[int, ...], steps: int, objective: str
) -> None:
    settings = load_settings(
        overrides=[
            f"inner.parameters={part}",
            f"inner.steps={steps}",
            "meta_batch.episodes=10",
            "task.horizon=50",
            f"outer.objective={objective}",
        ]
    )
    spec = PolicySpec(17, 6, hidden, "tanh", 0.0, -3.0)
    batch, parameters = _one_task(settings, spec, 500)
    backend = autograd(settings, spec)

    def update() -> None:
        backend.value_and_grad(parameters, batch, "second")
        if objective == "trpo":
            product = backend.linearize(parameters, batch, "second").fisher_product
            product(torch.ones_like(oracles.flat(parameters)))

    estimate = bytes_per_task(settings, spec)
    assert 0.6 * estimate < peak_bytes(update) < estimate


def test_a_fisher_product_in_pieces_keeps_to_the_memory_of_one() -> None:
    """What the inner steps of the others leave behind is not kept, but worked out again."""
    settings, spec = load_settings(), PolicySpec(17, 6, (64, 64), "tanh", 0.0, -3.0)
    one, parameters = _one_task(settings, spec, 500)
    batch = meta_oracles.tree_map(lambda part: torch.cat([part] * 4), one)
    direction = torch.ones_like(oracles.flat(parameters))

    def needed(microbatcher: Microbatcher) -> int:
        backend = autograd(settings, spec, microbatcher)
        return peak_bytes(
            lambda: backend.linearize(parameters, batch, "second").fisher_product(direction)
        )

    assert needed(Microbatcher(1)) < 0.6 * needed(Microbatcher())


def autograd(
    settings: Settings, spec: PolicySpec, microbatcher: Microbatcher | None = None
) -> AutogradBackend:
    return AutogradBackend(settings.inner, settings.outer, spec, microbatcher or Microbatcher())


def _one_task(settings: Settings, spec: PolicySpec, samples: int) -> tuple[Any, Any]:
    """A batch of one task, in float32, its ten random samples repeated; and parameters."""
    rng, times = np.random.default_rng(0), samples // 10
    parameters = oracles.random_parameters(spec, rng)
    batch = oracles.random_meta_batch(settings, spec, parameters, rng)
    parameters = oracles.meta_parameters(settings, parameters, rng)

    def many(part: Tensor) -> Tensor:
        part = part[:1].float()
        if part.shape[1:] == (2, 5):
            return part.repeat(1, 1, times)
        return part.repeat(1, times, 1) if part.ndim == 3 else part

    return meta_oracles.tree_map(many, batch), meta_oracles.tree_map(Tensor.float, parameters)
