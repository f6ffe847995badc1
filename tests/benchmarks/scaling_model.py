"""What an iteration with a thousand actors would take, from parts that were measured with a few.

Nothing is simulated: each part is a straight line in the number of tasks, and parts that follow one
another are added up. So the figures are upper bounds, where the driver works while actors do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maml_ray.config.settings import Settings


@dataclass(frozen=True)
class Parts:
    """Measured constants.

    Attributes:
        actor_s: seconds that an actor is at one task.
        fixed_s: of an iteration, whatever its size is.
        driver_s: the driver's own thread, per task.
        fetch_s: from the rollouts' references to arrays in the learner, per task, on one node.
        prepare_s: the learner's arithmetic before its epochs, per task.
        epoch_s: the learner's arithmetic of one epoch, per task.
        task_bytes: of one task's rollouts.
        version_bytes: of one version of the parameters.
    """

    actor_s: float
    fixed_s: float
    driver_s: float
    fetch_s: float
    prepare_s: float
    epoch_s: float
    task_bytes: float
    version_bytes: float


@dataclass(frozen=True)
class Assumed:
    """What no benchmark on one machine tells.

    Attributes:
        network: bytes a second into and out of one node.
        actors_per_node: cores of a node.
        epochs: ``outer.epochs``.
    """

    network: float = 10e9 / 8
    actors_per_node: int = 64
    epochs: int = Settings().outer.epochs


REMEDIES = {
    "learner": "a GPU for the learner; fewer outer.epochs or meta_batch.tasks; "
    "meta_batch.async_collection",
    "driver": "longer tasks: more meta_batch.episodes, fewer meta_batch.tasks",
    "gather": "fewer meta_batch.episodes; a faster network at the learner",
    "broadcast": "smaller policy.hidden_sizes; a faster network at the driver",
}
"""By part, the setting that moves it."""


@dataclass(frozen=True)
class Forecast:
    """An iteration of one task an actor: seconds of each part, one after the other.

    Attributes:
        actors: and as many tasks.
        actor_s: of the actors' work, all of them at once.
        fixed_s: whatever the size is.
        driver_s: hand-outs and receipts.
        learner_s: fetching from its own node, and arithmetic.
        gather_s: rollouts over the network of the learner's node.
        broadcast_s: parameters over the network of the driver's node, once to each node.
    """

    actors: int
    actor_s: float
    fixed_s: float
    driver_s: float
    learner_s: float
    gather_s: float
    broadcast_s: float

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self.actor_s + self.fixed_s + sum(self.shared.values())

    @property
    def overlapped_s(self) -> float:
        """The least with ``meta_batch.async_collection``, which collects during the update."""
        learning = self.learner_s + self.gather_s
        return max(self.wall_s - learning, learning)

    @property
    def shared(self) -> dict[str, float]:
        """The parts that grow with the number of actors."""
        return {
            "driver": self.driver_s,
            "learner": self.learner_s,
            "gather": self.gather_s,
            "broadcast": self.broadcast_s,
        }

    @property
    def binds(self) -> str:
        """The longest of them."""
        return max(self.shared, key=lambda part: self.shared[part])

    @property
    def efficiency(self) -> float:
        """Share of the wall time that the actors work."""
        return self.actor_s / self.wall_s


def forecast(parts: Parts, actors: int, assumed: Assumed) -> Forecast:
    """An iteration with so many actors, one task each."""
    nodes = -(-actors // assumed.actors_per_node)
    learning = parts.prepare_s + assumed.epochs * parts.epoch_s
    return Forecast(
        actors=actors,
        actor_s=parts.actor_s,
        fixed_s=parts.fixed_s,
        driver_s=actors * parts.driver_s,
        learner_s=actors * (parts.fetch_s + learning),
        gather_s=actors * parts.task_bytes / assumed.network,
        broadcast_s=nodes * parts.version_bytes / assumed.network,
    )


def first_to_bind(parts: Parts, assumed: Assumed, share: float = 0.1) -> dict[str, int]:
    """With how many actors each part comes to ``share`` of an actor's work; the first one first.

    The broadcast takes a step with each node, and is taken for a straight line here.
    """
    one = forecast(parts, assumed.actors_per_node, assumed)
    each = {part: seconds / assumed.actors_per_node for part, seconds in one.shared.items()}
    counts = {
        part: int(share * parts.actor_s / seconds) for part, seconds in each.items() if seconds
    }
    return dict(sorted(counts.items(), key=lambda item: item[1]))


def describe(parts: Parts, sizes: Sequence[int], assumed: Assumed) -> str:
    """A table for people, what was assumed, and what binds first."""
    lines = [
        f"forecast from: driver {parts.driver_s * 1e3:.2f} ms a task, learner fetches "
        f"{parts.fetch_s * 1e3:.2f}, prepares {parts.prepare_s * 1e3:.2f}, an epoch "
        f"{parts.epoch_s * 1e3:.2f} ms a task; fixed {parts.fixed_s * 1e3:.0f} ms",
        f"assumed: {assumed.network * 8e-9:g} Gbit/s at each node, {assumed.actors_per_node} "
        f"actors a node, outer.epochs {assumed.epochs}, one task of {parts.actor_s:g} s an actor",
        "actors   wall s  effic.   driver  learner   gather  broadcast  MB in  KB out  overlapped s"
        "  longest",
    ]
    for actors in sizes:
        one = forecast(parts, actors, assumed)
        sent = one.broadcast_s * assumed.network
        lines.append(
            f"{actors:>6} {one.wall_s:>8.2f} {one.efficiency:>7.2f} {one.driver_s:>8.2f} "
            f"{one.learner_s:>8.2f} {one.gather_s:>8.2f} {one.broadcast_s:>10.4f} "
            f"{actors * parts.task_bytes / 1e6:>6.0f} {sent / 1e3:>7.0f} "
            f"{one.overlapped_s:>13.2f}  {one.binds}"
        )
    lines.append("a tenth of an actor's work is reached by")
    for part, actors in first_to_bind(parts, assumed).items():
        lines.append(f"  the {part} with {actors:,} actors; what moves it: {REMEDIES[part]}")
    return "\n".join(lines)
