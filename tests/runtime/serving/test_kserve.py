"""Questions as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import test_front  # noqa: E402
from test_front import CHOICES, Service, served  # noqa: E402

bundle = test_front.bundle


def tensor(name: str, data: Any, *shape: int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": "BYTES", "data": data}


TWO = tensor("question", ["gold 2", "gold 0"], 2)
FLAT = tensor("choices", CHOICES * 2, 2, 4)


def test_tensors_in_and_out(bundle: Path) -> None:
    async def work(service: Service) -> None:
        async def infer(model: str = "oranbench", **of: Any) -> Any:
            return await service.client.post(f"/v2/models/{model}/infer", json=of)

        made = (await infer(inputs=[TWO, FLAT], id="7")).json()
        assert (made["model_name"], made["id"]) == ("oranbench", "7")
        answer, index, shares = made["outputs"]
        assert (answer["data"], answer["shape"], answer["datatype"]) == (["y", "w"], [2], "BYTES")
        assert (index["data"], index["datatype"]) == ([2, 0], "INT64")
        assert (shares["shape"], len(shares["data"])) == ([2, 4], 8)
        assert shares["data"][2] == shares["data"][4] == pytest.approx(0.7)
        nested = tensor("choices", [CHOICES, CHOICES], 2, 4)
        wanted = {"outputs": [{"name": "index"}], "parameters": {"k": 2}}
        made = (await infer(inputs=[nested, TWO], **wanted)).json()
        assert [one["name"] for one in made["outputs"]] == ["index"]
        # As clients of the protocol write them.
        said = {"parameters": {"content_type": "str"}}, {"parameters": {"binary_data": False}}
        told = [{**TWO, **said[0]}, {**FLAT, **said[1]}]
        made = (await infer(inputs=told, outputs=[{"name": "index", **said[1]}])).json()
        assert made["outputs"][0]["data"] == [2, 0]
        about = (await service.client.get("/v2/models/oranbench")).json()
        assert [one["name"] for one in about["inputs"]] == ["question", "choices"]
        for of, said in (
            ({"inputs": [FLAT]}, "question is needed"),
            ({"inputs": [TWO, tensor("choices", CHOICES, 1, 4)]}, "[2, N]"),
            ({"inputs": [tensor("question", ["a"], 2)]}, "shape [2] and 1"),
            ({"inputs": [{**TWO, "datatype": "FP32"}]}, "BYTES"),
            ({"inputs": [TWO, FLAT], "parameters": {"top_k": 1}}, "top_k"),
            ({"inputs": [TWO, FLAT], "parameters": {"k": "x"}}, "Expected `int"),
            ({"inputs": [TWO, FLAT], "outputs": [{"name": "x"}]}, "outputs: x"),
            (
                {"inputs": [{**TWO, "parameters": {"binary_data_size": 9}}, FLAT]},
                "question: parameters: binary_data_size 9",
            ),
            (
                {
                    "inputs": [TWO, FLAT],
                    "outputs": [{"name": "index", "parameters": {"binary_data": True}}],
                },
                "index: parameters: binary_data True",
            ),
            ({"inputs": [TWO, {**FLAT, "data": [*CHOICES, *CHOICES[:3], 1]}]}, "texts are needed"),
        ):
            refused = await infer(**of)
            assert refused.status_code == 400, refused.text
            assert said in refused.json()["error"]["message"]
        assert (await infer("none", inputs=[TWO, FLAT])).status_code == 404

    served(bundle, work)
