"""Energy and power in the metrics: where they can be read, and only there."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from tel_edge.runtime.device.power import Power
from tel_edge.runtime.serving.metrics import Metrics


def test_energy_adds_up_and_a_changed_mode_replaces_the_one_before() -> None:
    metrics = Metrics()
    metrics.powered(None, Power(online=4))
    text = metrics.text({}, None, 0)[0].decode()
    assert "tel_joules" not in text
    assert "tel_power_mode" not in text
    metrics.powered(2.0, Power("MAXN", "schedutil", 6))
    metrics.powered(None, Power())
    metrics.powered(0.5, Power("MODE_15W", "schedutil", 4))
    metrics.power_changes.inc()
    text = metrics.text({}, None, 0)[0].decode()
    assert "tel_joules_total 2.5" in text
    labels = 'cores_online="4",governor="schedutil",mode="MODE_15W"'
    assert f"tel_power_mode_info{{{labels}}} 1.0" in text
    assert "MAXN" not in text
    assert "tel_power_changes_total 1.0" in text


def test_a_machine_without_modes_has_its_governor() -> None:
    metrics = Metrics()
    metrics.powered(None, Power(None, "powersave", None))
    text = metrics.text({}, None, 0)[0].decode()
    assert 'cores_online="",governor="powersave",mode=""' in text
