"""Energy and power mode in the metrics: where they can be read, and only there."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from tel_edge.runtime.serving.metrics import Metrics


def test_energy_adds_up_and_a_changed_mode_replaces_the_one_before() -> None:
    metrics = Metrics()
    metrics.powered(None, None)
    text = metrics.text({}, None, 0)[0].decode()
    assert "tel_joules" not in text
    assert "tel_power_mode" not in text
    metrics.powered(2.0, "MAXN")
    metrics.powered(None, None)
    metrics.powered(0.5, "MODE_15W")
    text = metrics.text({}, None, 0)[0].decode()
    assert "tel_joules_total 2.5" in text
    assert 'tel_power_mode_info{mode="MODE_15W"} 1.0' in text
    assert "MAXN" not in text
