"""The Serve application: `import_path: server.ray.application:application`, see deploy/ray/adapterd.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from server.ray.child import stop_s
from server.ray.plan import Plan
from server.ray.replica import Replica
from server.ray.scaling import DOWN_S, LOOK_BACK_S, UP_S, desired

HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 1.0, 10.0  # three failures in a row, and Serve replaces it
LOOP_S = 0.1  # how often a replica that goes looks whether Serve has requests for it: it never has


class Arguments(BaseModel):
    """What `args` of an application in a file of Serve may have; see `Plan`."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] = {}
    replicas: str = "1"
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    scrape_targets: str = ""


def application(args: dict[str, Any]) -> Application:
    """
    args   see `Arguments`; Serve would make them of a type only where annotations are no texts

    Raises InvalidInput, and pydantic's errors for what Arguments does not have.
    """
    asked = Arguments.model_validate(args)
    plan = Plan(asked.settings, asked.replicas, asked.cpus_per_replica, asked.gpus_per_replica, asked.scrape_targets)
    return of_plan(plan)


def of_plan(plan: Plan) -> Application:
    deployment = serve.deployment(
        name="replica",
        ray_actor_options={"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=LOOP_S,
        graceful_shutdown_timeout_s=stop_s(plan.config()),
        **_number(*plan.bounds),
    )
    return deployment(Replica).bind(plan)


def _number(least: int, most: int) -> dict[str, Any]:
    """Serve's options for it: scaled only where there is a choice."""
    if least == most:
        return {"num_replicas": least}
    scaled = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        upscale_delay_s=UP_S,
        downscale_delay_s=DOWN_S,
        look_back_period_s=LOOK_BACK_S,
        policy=AutoscalingPolicy(policy_function=desired),
    )
    return {"autoscaling_config": scaled}
