"""What differs between the versions of transformers that requirements.txt allows, for tests that build its models."""

from __future__ import annotations

from typing import Any

import transformers

_NEW = int(transformers.__version__.split(".")[0]) >= 5


def rope_arguments(theta: float, scaling: dict[str, Any] | None, max_position_embeddings: int) -> dict[str, Any]:
    """Arguments of a config class for RoPE with `scaling` (rope_type, factor, ...), None = plain.

    transformers 4 takes YaRN's factor from max_position_embeddings / original_max_position_embeddings.
    """
    if _NEW:
        parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
        return {"rope_parameters": parameters, "max_position_embeddings": max_position_embeddings}
    if scaling:
        max_position_embeddings = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    return {"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": max_position_embeddings}


def rope_of(config: Any) -> dict[str, Any]:
    """A config's RoPE parameters in the form of transformers 5."""
    if _NEW:
        return config.rope_parameters
    return {"rope_theta": config.rope_theta, **(config.rope_scaling or {})}
