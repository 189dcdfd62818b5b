"""The application file for Serve, against Serve's own schema, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from server.ray.application import application
from server.ray.scaling import DOWN_S, UP_S

FILE = Path(__file__).parents[2] / "deploy" / "ray" / "adapterd.yaml"


def test_serve_takes_the_file_and_builds_the_application() -> None:
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    [described] = deploy.applications
    assert import_attr(described.import_path) is application
    built = call_user_app_builder_with_args_if_necessary(application, described.args)._bound_deployment
    scaling = built._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 8)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (UP_S, DOWN_S)
    assert scaling.policy.policy_function == "server.ray.scaling.desired"
    assert built.ray_actor_options["num_cpus"] == 4
    assert built._deployment_config.graceful_shutdown_timeout_s > 30  # the drain's own limit
    assert deploy.proxy_location.value == "Disabled" and described.route_prefix is None


def test_what_arguments_do_not_have_is_refused() -> None:
    with pytest.raises(ValidationError, match="replica\n.*not permitted"):
        application({"replica": "3"})


def test_a_number_of_replicas_is_not_scaled() -> None:
    built = application({"replicas": "3"})._bound_deployment
    assert built.num_replicas == 3 and built._deployment_config.autoscaling_config is None
