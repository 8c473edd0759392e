"""Which replica gets a request: the one that its conversation always goes to, or the least busy one.

Rendezvous hashing: each replica has a rank for each conversation, by a hash of both, and the first one gets it. So all
routers agree without a word, and a replica that comes or goes moves only the conversations it gets or had. Ray makes
one in each ingress, as its documentation on custom request routers describes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from qwench.replicas.forwarding import ForwardedRequest

MAX_IMBALANCE = 8  # more open requests than the least busy replica has, and a cached prefix is no reason to wait


def ranked(names: Iterable[str], request: ForwardedRequest, num_open: Mapping[str, int]) -> list[str]:
    """Replicas by their names, the best one first. num_open: requests that each has; those that aren't in it have
    none."""
    by_hash = sorted(names, key=lambda name: _hash(name, request.conversation or ""), reverse=True)
    by_load = sorted(by_hash, key=lambda name: num_open.get(name, 0))
    order = by_load
    if request.conversation is not None:
        most = num_open.get(by_load[0], 0) + MAX_IMBALANCE if by_load else 0
        order = [name for name in by_hash if num_open.get(name, 0) <= most]
        order += [name for name in by_load if name not in order]
    return sorted(order, key=lambda name: name in request.tried)


def _hash(name: str, conversation: str) -> bytes:
    return hashlib.blake2b(f"{name}\n{conversation}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


class ConversationRouter(RequestRouter):  # type: ignore[misc]  # which has no types
    """Counts the requests that went through it: what another ingress sent is balanced there."""

    # A busy machine may be slow to say how many requests a replica has; another one hasn't the prefix.
    queue_len_response_deadline_s = 1.0

    def initialize_state(self) -> None:
        self._open: defaultdict[str, set[str]] = defaultdict(set)

    async def choose_replicas(
        self, candidate_replicas: Sequence[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica in a rank of its own: Ray takes the first one that accepts."""
        if pending_request is None or not isinstance(request := pending_request.args[0], ForwardedRequest):
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True  # wait between two rounds in which none accepts
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        num_open = {name: len(self._open[name]) for name in by_name}
        return [[by_name[name]] for name in ranked(by_name, request, num_open)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        self._open[replica_id.unique_id].add(pending_request.metadata.internal_request_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._open[replica_id.unique_id].discard(internal_request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._open.pop(replica_id.unique_id, None)
