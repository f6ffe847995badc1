"""Combinations of algorithm settings: rejected in one sentence, or read back unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from maml_ray.config.loading import dump_settings, load_settings, validate_settings
from maml_ray.config.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"outer": {"first_order_iterations": 3}},
            ["outer.first_order_iterations = 3", "outer.order = hybrid"],
        ),
        (
            {"outer": {"order": "first", "first_order_iterations": 3}},
            ["outer.first_order_iterations = 3", "outer.order = hybrid"],
        ),
        ({"outer": {"order": "hybrid", "first_order_iterations": -1}}, ["or equal to 0"]),
        (
            {"advantages": {"baseline": "zero", "bootstrap_time_limit": True}},
            ["advantages.bootstrap_time_limit = True", "baseline = zero"],
        ),
        (
            {"advantages": {"discount": 1.0, "bootstrap_time_limit": True}},
            ["advantages.bootstrap_time_limit = True", "discount = 1"],
        ),
        (
            {"advantages": {"bootstrap_time_limit": True, "discount": 1, "baseline": "linear"}},
            ["advantages.bootstrap_time_limit = True", "discount = 1"],
        ),
        ({"inner": {"steps": -1}}, ["inner.steps = -1", "or equal to 0"]),
        ({"inner": {"objective": "dise"}}, ["inner.objective", "'ratio', 'dice' or 'log_prob'"]),
        ({"inner": {"learn_inner_rates": 1}}, ["inner.learn_inner_rates", "write true"]),
        ({"inner": {"parameters": "body"}}, ["inner.parameters", "'all', 'head' or 'context'"]),
        ({"inner": {"context_size": 0}}, ["inner.context_size = 0"]),
        (
            {"inner": {"parameters": "context"}, "policy": {"hidden_sizes": []}},
            ["inner.parameters = context needs a hidden layer", "policy.hidden_sizes"],
        ),
        (
            {"inner": {"parameters": "context"}, "meta_batch": {"episodes": 1}},
            ["inner.parameters = context", "in pairs", "meta_batch.episodes of 2 or more"],
        ),
        (
            {"inner": {"parameters": "context"}, "outer": {"e_maml_coefficient": 0.1}},
            ["inner.parameters = context", "E-MAML's term", "outer.e_maml_coefficient = 0"],
        ),
        (
            {"inner": {"steps": 0}, "outer": {"objective": "reptile"}},
            ["outer.objective = reptile needs inner.steps of 1 or more"],
        ),
        *(
            (
                {"inner": inner, "outer": {"objective": "reptile"}},
                ["outer.objective = reptile", "needs inner.parameters = all"],
            )
            for inner in (
                {"learn_inner_rates": True},
                {"parameters": "head"},
                {"parameters": "context"},
            )
        ),
        (
            {"outer": {"objective": "reptile", "e_maml_coefficient": 0.1}},
            ["outer.objective = reptile", "outer.e_maml_coefficient = 0"],
        ),
        ({"outer": {"order": "third"}}, ["outer.order", "'second', 'first' or 'hybrid'"]),
        ({"outer": {"e_maml_coefficient": -0.1}}, ["outer.e_maml_coefficient"]),
        ({"outer": {"e_maml_coefficient": float("inf")}}, ["outer.e_maml_coefficient"]),
        ({"outer": {"trust_region": {"max_kl": 0}}}, ["outer.trust_region.max_kl = 0"]),
        ({"outer": {"trust_region": {"damping": -1}}}, ["outer.trust_region.damping = -1"]),
        ({"outer": {"trust_region": {"backtrack_ratio": 1}}}, ["backtrack_ratio", "less than 1"]),
        ({"outer": {"trust_region": {"backtrack_ratio": 0}}}, ["backtrack_ratio"]),
        ({"outer": {"trust_region": {"max_backtracks": 0}}}, ["max_backtracks"]),
        ({"outer": {"trust_region": {"cg_iterations": 0}}}, ["cg_iterations"]),
        ({"outer": {"trust_region": {"maxkl": 1}}}, ["did you mean 'outer.trust_region.max_kl'"]),
        ({"policy": {"action_scale": 0}}, ["policy.action_scale = 0", "greater than 0"]),
        ({"policy": {"action_scale": -1.0}}, ["policy.action_scale"]),
        ({"task": {"info_metrics": ["return"]}}, ["return_after is a metric already"]),
        (  # 600 million steps of support data, and as many of query data
            {"meta_batch": {"tasks": 1000, "episodes": 3000}},
            ["an iteration would have 1200000000 environment steps", "1,000,000,000"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    data: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_settings(data)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"outer": {"order": "hybrid", "first_order_iterations": 3}},
        {"outer": {"first_order_iterations": 3, "order": "hybrid"}},
        {"outer": {"order": "hybrid"}},
        {"outer": {"order": "first", "first_order_iterations": 0}},
        {"advantages": {"bootstrap_time_limit": True}},
        {"advantages": {"bootstrap_time_limit": True, "discount": 0.0}},
        {"advantages": {"bootstrap_time_limit": False, "baseline": "zero", "discount": 1}},
        {"inner": {"steps": 0, "learn_inner_rates": True, "objective": "dice"}},
        {"inner": {"parameters": "head", "learn_inner_rates": True}},
        {"inner": {"parameters": "context", "context_size": 2, "learning_rate": 3.0}},
        {"inner": {"parameters": "context", "learn_inner_rates": True}},
        {"inner": {"parameters": "context", "context_size": 4}, "meta_batch": {"episodes": 2}},
        {"inner": {"parameters": "context", "steps": 0}, "meta_batch": {"episodes": 1}},
        {"inner": {"context_size": 2}},
        {"outer": {"objective": "trpo", "trust_region": {"max_kl": 1e-3, "damping": 0}}},
        {"outer": {"objective": "reptile"}, "inner": {"steps": 3}},
        {"outer": {"diagnose_every": None, "e_maml_coefficient": 0.3}},
        {"policy": {"action_scale": 0.3}},
    ],
)
def test_what_goes_together_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    settings = validate_settings(data)
    path = tmp_path_factory.mktemp("dump") / "settings.yaml"
    path.write_text(dump_settings(settings), encoding="utf-8")
    assert load_settings(path) == settings
    for section, values in data.items():
        for key, value in values.items():
            found = getattr(getattr(settings, section), key)
            if isinstance(value, dict):
                assert all(getattr(found, name) == one for name, one in value.items())
            else:
                assert found == value


def test_one_key_of_the_trust_region_leaves_the_others() -> None:
    settings = load_settings(overrides=["outer.trust_region.max_kl=0.5"])
    default = Settings().outer.trust_region
    assert settings.outer.trust_region == default.model_copy(update={"max_kl": 0.5})
