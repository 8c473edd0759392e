"""What Ray Serve deploys: an ingress over the replicas. deploy/ray_serve.py gives it the name that users type.

Without `from __future__ import annotations`: Ray reads the type of `app`'s argument from its annotation.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from qwench.replicas.ingress import WAIT_S, Ingress
from qwench.replicas.options import ReplicaOptions
from qwench.replicas.replica import Replica
from qwench.replicas.router import ConversationRouter

# The engine has a queue of its own, whose limit is told with status 429; Ray shall not keep requests from it.
MANY = 1 << 16
INGRESS_CPUS = 0  # it waits most of the time, as Ray's own proxies do, and replicas may have all processors


def app(args: ReplicaOptions) -> Application:
    """Raises ConfigError for options that contradict each other, before anything is started."""
    options = args.serve_options()
    replicas = serve.deployment(
        Replica, name="Replica", max_ongoing_requests=MANY, ray_actor_options={"num_cpus": args.num_cpus},
        graceful_shutdown_timeout_s=max(options.drain, 1), graceful_shutdown_wait_loop_s=0.5,
        request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
        # Ranks are bound to processors, the same ones in every replica.
        max_replicas_per_node=1 if (options.tensor_parallel_size or 1) > 1 else None, **_scale(args),
    )  # fmt: skip
    ingress = serve.deployment(
        serve.ingress()(Ingress), name="Ingress", max_ongoing_requests=MANY, num_replicas=args.ingress_replicas,
        graceful_shutdown_timeout_s=max(options.drain, 1) + WAIT_S, graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    )  # fmt: skip
    application: Application = ingress.bind(replicas.bind(options), options)
    return application


def _scale(args: ReplicaOptions) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.min_replicas, max_replicas=args.max_replicas,
            initial_replicas=min(max(args.replicas, args.min_replicas), args.max_replicas),
            target_ongoing_requests=args.target_ongoing_requests,
        )
    }  # fmt: skip
