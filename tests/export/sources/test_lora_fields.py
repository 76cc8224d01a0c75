"""Fields of an adapter's configuration that nobody here knows are refused by name."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from tel_edge.export.sources import adapter
from tel_edge.runtime.errors import InputError

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
PATH = Path("lora") / "adapter_config.json"


@pytest.mark.parametrize("value", [True, 0.5, "yes", ["q_proj"], {"rank": 2}])
def test_an_unknown_field_that_is_set_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        adapter._check_config(PATH, {**LORA, "use_folding": value})
    said = str(caught.value)
    assert f"adapter_config.json: use_folding={value!r}" in said
    assert "remove it" in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_an_unknown_field_that_is_off_is_let_be(value: Any) -> None:
    adapter._check_config(PATH, {**LORA, "use_folding": value})


def test_every_field_of_peft_is_in_one_table() -> None:
    peft = pytest.importorskip("peft")
    from tel_edge.export.sources import lora_fields

    defaults = {
        field.name: field.default_factory() if field.default is MISSING else field.default  # type: ignore[misc]
        for field in fields(peft.LoraConfig)
    }
    assert lora_fields.KNOWN | lora_fields.REFUSED.keys() == defaults.keys()
    assert not lora_fields.KNOWN & lora_fields.REFUSED.keys()
    # So a field that is off is at its default.
    assert not [name for name in lora_fields.REFUSED if defaults[name]]


def test_a_configuration_of_defaults_passes() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules=["q_proj"]).to_dict()
    adapter._check_config(PATH, {**config, "peft_type": "LORA"})
