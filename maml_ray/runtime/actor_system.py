"""The actors of a run together: a learner, rollout actors, and the account of their work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import ray

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.learning.state import UpdateMetrics, initial_learner_state, policy_snapshot
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.records import FaultCounts
from maml_ray.policies.spec import PolicySpec
from maml_ray.runtime.capacity import Capacity, demanded_actors
from maml_ray.runtime.fault_policy import FaultLog, Observation, settle
from maml_ray.runtime.heartbeat import Place
from maml_ray.runtime.learner_handle import LearnerClient, RolloutsLost
from maml_ray.runtime.ray_session import plan_resources
from maml_ray.runtime.rollout_pool import Collected, Rollout, RolloutPool
from maml_ray.runtime.run_id import own_name
from maml_ray.runtime.work_queue import Batch, WorkCounts


@dataclass
class Crew:
    """The actors of a run, up and running.

    Attributes:
        settings: of the run.
        spec: the policy's sizes.
        learner, pool: the actors.
        places: where the rollout actors run, to begin with.
        parameters: a reference to the newest ones, for the actors and for whoever follows the run.
        learner_place: where the learner computes, in words.
        began: when the first meta-batch was begun, on ``time.perf_counter``'s clock.
    """

    settings: Settings
    spec: PolicySpec
    learner: LearnerClient
    pool: RolloutPool
    places: tuple[Place, ...]
    parameters: ray.ObjectRef[Any]
    _faults: FaultLog
    _settle: Callable[[Observation], None]
    learner_place: str = ""
    began: float = field(default_factory=time.perf_counter)
    _counts: WorkCounts = field(default_factory=WorkCounts)
    _ahead: Batch[Rollout] | None = None

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Have the meta-batch of the next :meth:`learn` begun, if there is to be one."""
        if assignments:
            self._ahead = self.pool.begin(self._collecting(), assignments)

    def learn(
        self, assignments: Sequence[Assignment], ahead: Sequence[Assignment] = ()
    ) -> tuple[Collected, UpdateMetrics]:
        """Collect a meta-batch and update from it; again, where rollouts are lost in between.

        Args:
            assignments: the meta-batch; where it was ``ahead`` last time, it is under way already.
            ahead: another, which the actors collect with the newest parameters as soon as they are
                free, while the learner works. It waits for its turn, which is the next call.

        Raises:
            TrainingFailed: a piece of work failed too often, or a budget for faults is spent.
            Interrupted: a request to stop came.
        """
        batch = self._ahead or self.pool.begin(self._collecting(), assignments)
        self._ahead = self.pool.begin(self.parameters, ahead) if ahead else None
        meanwhile = self.pool.step if ahead else None
        collected = self.pool.finish(batch, self._hand_over)
        while True:
            try:
                rollouts = [one.rollouts for one in collected.rollouts]
                update = self.learner.update(rollouts, meanwhile)
            except RolloutsLost as lost:
                failure = self.pool.how_lost(collected)
                seen = Observation(failure, "the meta-update", "the learner", 0, str(lost))
                self._settle(seen)
                collected = self.pool.collect(batch.parameters, assignments, collected)
            else:
                self._account(collected.counts, len(assignments))
                self.parameters = ray.put(policy_snapshot(self.settings.policy, self.learner.state))
                return collected, update

    def _hand_over(self, done: Sequence[Rollout]) -> None:
        """Have the learner prepare what is there, before the last of it comes."""
        self.learner.take([one.rollouts for one in done])

    def newest(self) -> tuple[int, ray.ObjectRef[Any]]:
        """The newest version of the parameters, and a reference to them."""
        return self.learner.state.version, self.parameters

    def figures(self, collected: Collected) -> FaultCounts:
        """What it took to collect, and what has failed so far."""
        return FaultCounts(
            actors=collected.actors,
            **asdict(collected.counts),
            failures=self._faults.total,
            learner_restarts=self.learner.restarts,
        )

    def _collecting(self) -> ray.ObjectRef[Any]:
        """What a meta-batch is collected with that is not under way: after the start."""
        behind = self.learner.state.stale_params
        return self.parameters if behind is None else ray.put(behind)

    def _account(self, counts: WorkCounts, tasks: int) -> None:
        """Every piece of work is used once, and every other one is known to be lost or late."""
        self._counts += counts
        so_far = self._counts + (self._ahead.counts if self._ahead else WorkCounts())
        if counts.used != tasks or so_far.unanswered != self.pool.in_flight:
            raise TrainingFailed(
                f"the account of the work is wrong: {counts} of {tasks} tasks; since the start "
                f"{so_far}, under way {self.pool.in_flight}"
            )


@contextmanager
def crew(
    settings: Settings,
    spec: PolicySpec,
    resume: Checkpoint | None,
    first: Sequence[Assignment],
    *,
    on_event: Callable[[str], None],
    check_stop: Callable[[], None],
) -> Iterator[Crew]:
    """Start the actors, and end them whatever happens.

    Args:
        settings: of the run.
        spec: the policy's sizes.
        resume: where the learner goes on; None to begin.
        first: the meta-batch that is learned from first. It is collected while the learner starts,
            whose process takes longest: PyTorch is imported, a GPU may have to be waited for.
        on_event: told of every failure that was mended.
        check_stop: called while waiting; may raise to abandon the wait.

    Raises:
        ResourceError: the cluster lacks what is asked for, or is too slow to give it.
    """
    plan = plan_resources(settings.cluster, ray.cluster_resources())
    namespace = own_name(settings.run.name).namespace
    faults = FaultLog(settings.faults, settings.cluster.max_task_attempts)
    told_of = partial(settle, faults, on_event=on_event)
    state = resume.learner if resume else initial_learner_state(settings, spec)
    demanded = demanded_actors(settings.cluster, settings.meta_batch.tasks)
    capacity = Capacity(settings.cluster, demanded=demanded)
    with ExitStack() as closing:
        learner = LearnerClient(
            settings,
            spec,
            plan,
            namespace,
            capacity,
            state=state,
            settle=told_of,
            on_event=on_event,
            check_stop=check_stop,
        )
        closing.callback(learner.close)
        pool = RolloutPool(
            settings, namespace, capacity, settle=told_of, on_event=on_event, check_stop=check_stop
        )
        closing.callback(pool.close)
        places = pool.wait_until_ready()
        newest = ray.put(policy_snapshot(settings.policy, state))
        made = Crew(settings, spec, learner, pool, places, newest, faults, told_of)
        made.begin(first)
        made.learner_place = learner.wait_until_ready(pool.step)
        yield made
