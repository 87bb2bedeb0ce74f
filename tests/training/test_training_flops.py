"""The FLOPs behind MFU, and the peak they are divided by."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.model import count_params
from minimind_jax.recipe import MODEL_PRESETS
from minimind_jax.training import flops


def test_the_8_gpu_recipe_costs_what_its_docstring_says():
    model = ModelConfig(**MODEL_PRESETS["minimind_1024"])
    assert flops.flops_per_token(model, 1024) == 6 * count_params(model) + 12 * 16 * 1024 * 1024
    assert flops.flops_per_token(model, 1024) == pytest.approx(1.3e9, rel=0.01)


def test_attention_counts_by_its_own_width():
    """D of the formula is n_heads * head_dim, which need not be dim."""
    narrow, wide = (ModelConfig(dim=64, n_layers=3, n_heads=4, head_dim=h) for h in (16, 32))
    for model, width in ((narrow, 64), (wide, 128)):
        assert flops.flops_per_token(model, 100) - flops.flops_per_token(model, 0) == 12 * 3 * width * 100


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 3090", 71),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_known_devices_by_their_data_sheets(monkeypatch: pytest.MonkeyPatch, kind: str, tera: float):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    peak, source = flops.peak_flops()
    assert peak == tera * 1e12 and kind in source and "data sheet" in source


@pytest.mark.parametrize("kind", ["NVIDIA L40", "NVIDIA RTX A1000 Laptop GPU", "cpu", "TPU v9"])
def test_an_unknown_device_is_measured_and_said_to_be(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(flops, "_measured_matmul_flops", lambda: 1e9)
    peak, source = flops.peak_flops()
    assert peak == 1e9 and "measured" in source


def test_a_measurement_is_a_plausible_speed():
    assert 1e8 < flops._measured_matmul_flops(256, 2) < 1e15
