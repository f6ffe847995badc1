"""Run a learner and rollout actors together, and account for all of their work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import ray

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.sections import PolicySettings
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.learning.state import UpdateMetrics, initial_learner_state, policy_snapshot
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.records import FaultCounts
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.actors import ActorLocation
from maml_ray.runtime.capacity import Capacity, autoscaler_demand, plan_resources
from maml_ray.runtime.fault_policy import FailureReport, FaultLog, handle_failure
from maml_ray.runtime.learner_handle import LearnerHandle, RolloutsLost
from maml_ray.runtime.rollout_pool import CollectedBatch, RolloutPool, RolloutRef
from maml_ray.runtime.run_context import RunContext, current_run_id
from maml_ray.runtime.work_queue import WorkBatch, WorkCounts
from maml_ray.tasks.loading import OwnTasks


@dataclass
class ActorSystem:
    """The running actors of a training run.

    Attributes:
        policy: settings of the policy.
        spec: sizes of the policy.
        learner, pool: the actors.
        locations: where the rollout actors run at the start.
        parameters: reference to the latest policy, for the actors and for followers of the run.
        context: failure handling of the run.
        faults: failures so far.
        learner_device: description of the learner's device.
        started_at: when the first meta-batch was submitted, on the clock of ``time.perf_counter``.
    """

    policy: PolicySettings
    spec: PolicySpec
    learner: LearnerHandle
    pool: RolloutPool
    locations: tuple[ActorLocation, ...]
    parameters: ray.ObjectRef[Any]
    context: RunContext
    faults: FaultLog
    learner_device: str = ""
    started_at: float = field(default_factory=time.perf_counter)
    _counts: WorkCounts = field(default_factory=WorkCounts)
    _prefetched: WorkBatch[RolloutRef] | None = None

    def prefetch(self, assignments: Sequence[Assignment]) -> None:
        """Start to collect the meta-batch of the next :meth:`run_iteration`, if there is one."""
        if assignments:
            self._prefetched = self.pool.submit(self._collection_params(), assignments)
            self.pool.dispatch()

    def run_iteration(
        self, assignments: Sequence[Assignment], prefetched: Sequence[Assignment] = ()
    ) -> tuple[CollectedBatch, UpdateMetrics]:
        """Collect a meta-batch and update from it; repeat both if rollouts are lost in between.

        Args:
            assignments: the meta-batch, which may have been prefetched by the previous call.
            prefetched: the next meta-batch, which free actors collect with the latest parameters
                while the learner works.

        Raises:
            TrainingFailed: a piece of work failed too often, or a fault budget is spent.
            Interrupted: a stop was requested.
        """
        batch = self._prefetched or self.pool.submit(self._collection_params(), assignments)
        self._prefetched = self.pool.submit(self.parameters, prefetched) if prefetched else None
        poll_fn = self.pool.step if prefetched else None
        collected = self.pool.finish(batch, self._prepare)
        while True:
            try:
                rollouts = [one.rollouts for one in collected.rollouts]
                update = self.learner.update(rollouts, poll_fn)
            except RolloutsLost as lost:
                failure = self.pool.classify_loss(collected)
                report = FailureReport(failure, "the meta-update", "the learner", 0, str(lost))
                self.context.handle_failure(report)
                collected = self.pool.collect(batch.parameters, assignments, collected)
            else:
                self._check_counts(collected.counts, len(assignments))
                self.parameters = ray.put(policy_snapshot(self.policy, self.learner.state))
                return collected, update

    def latest(self) -> tuple[int, ray.ObjectRef[Any]]:
        """Return the latest version of the parameters, and a reference to them."""
        return self.learner.state.version, self.parameters

    def fault_counts(self, collected: CollectedBatch) -> FaultCounts:
        """Return the work done for a meta-batch, and the failures so far."""
        return FaultCounts(
            actors=collected.actors,
            **asdict(collected.counts),
            failures=self.faults.total,
            learner_restarts=self.learner.restarts,
        )

    def _prepare(self, rollouts: Sequence[RolloutRef]) -> None:
        """Let the learner prepare finished rollouts before the last ones arrive."""
        self.learner.prefetch([one.rollouts for one in rollouts])

    def _collection_params(self) -> ray.ObjectRef[Any]:
        """Return the parameters for a meta-batch that is not in progress yet: after the start."""
        stale = self.learner.state.stale_params
        return self.parameters if stale is None else ray.put(stale)

    def _check_counts(self, counts: WorkCounts, tasks: int) -> None:
        """Check that each task was used once, and that every other piece of work is accounted for.

        Raises:
            TrainingFailed: the counts do not add up, which is a bug.
        """
        self._counts += counts
        total = self._counts + (self._prefetched.counts if self._prefetched else WorkCounts())
        if counts.used != tasks or total.unanswered != self.pool.in_flight:
            raise TrainingFailed(
                f"the work counts are inconsistent: {counts} of {tasks} tasks; since the start "
                f"{total}, in flight {self.pool.in_flight}"
            )


@contextmanager
def start_actors(
    settings: Settings,
    spec: PolicySpec,
    resume: Checkpoint | None,
    first: Sequence[Assignment],
    *,
    on_event: Callable[[str], None],
    check_stop: Callable[[], None],
    own_tasks: OwnTasks | None = None,
    on_status: Callable[[str], None] = lambda message: None,
) -> Iterator[ActorSystem]:
    """Start the actors of a run, and kill them at the end of the block.

    Args:
        settings: of the run.
        spec: sizes of the policy.
        resume: checkpoint to resume from; None for a new run.
        first: the first meta-batch. It is collected while the learner starts, which takes longest:
            it imports PyTorch and may have to wait for a GPU.
        on_event: receives messages for the user: failures that were recovered from, long waits.
        check_stop: called while waiting; may raise to abandon the wait.
        own_tasks: tasks of the run if they were given in Python.
        on_status: receives what is waited for.

    Raises:
        ResourceError: the cluster lacks the requested resources, or provides them too slowly.
    """
    plan = plan_resources(settings.cluster, ray.cluster_resources())
    faults = FaultLog(settings.faults, settings.cluster.max_task_attempts)
    demand = autoscaler_demand(settings.cluster, settings.meta_batch.tasks)
    context = RunContext(
        namespace=current_run_id(settings.run.name).namespace,
        capacity=Capacity(settings.cluster, autoscaler_actors=demand),
        handle_failure=partial(handle_failure, faults, on_event=on_event),
        on_event=on_event,
        check_stop=check_stop,
        own_tasks=own_tasks,
        on_status=on_status,
    )
    state = resume.learner if resume else initial_learner_state(settings, spec)
    with ExitStack() as closing:
        learner = LearnerHandle(settings, spec, plan, context, state)
        closing.callback(learner.close)
        pool = RolloutPool(settings, context)
        closing.callback(pool.close)
        locations = pool.wait_until_ready()
        latest = ray.put(policy_snapshot(settings.policy, state))
        system = ActorSystem(
            settings.policy, spec, learner, pool, locations, latest, context, faults
        )
        system.prefetch(first)
        system.learner_device = learner.wait_until_ready(pool.step)
        yield system
