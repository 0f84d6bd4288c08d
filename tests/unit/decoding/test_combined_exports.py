"""Exports of techniques in combination: each is exact, or is refused by the name of its flag."""

from __future__ import annotations

from dataclasses import replace

import pytest
from depth_models import ALL
from huggingface_models import built, export_model, offline  # noqa: F401  a fixture
from sharing_cases import BY_NAME
from structure_cases import export_case

from fairseq_sharing.errors import SharingError

UNTIED = {"sharing": "none", "unique_layers": None}
EXACT = {
    "adapters and component maps": {**ALL, **UNTIED, "component_sharing": "ffn=universal;self_attn=cycle:3"},
    "component maps across stacks": {**UNTIED, "cross_stack_sharing": "attention=by_depth;ffn=by_depth"},
    "adapters and DeepNorm": {**ALL, "deepnorm": True},
    "adapters and Admin": {**ALL, "admin": "closed_form"},
}
LACKING = {
    "--decoder-no-ffn": {"decoder_no_ffn": True},
    "--embedding-factor-dim": {"embedding_factor_dim": 4},
    "--b2t": {"b2t": True},
}


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
@pytest.mark.usefixtures("offline")
def test_hugging_face_computes_the_same(options, monkeypatch, tmp_path):
    model, task = built("post", **{"sharing": "cycle", "unique_layers": 3, **options})
    assert export_model(monkeypatch, model, task, tmp_path / "out").difference.largest < 1e-4


@pytest.mark.parametrize(("flag", "options"), LACKING.items(), ids=LACKING)
@pytest.mark.usefixtures("offline")
def test_hugging_face_refuses_what_it_lacks(flag, options, monkeypatch, tmp_path):
    model, task = built("post", sharing="cycle", unique_layers=3, **options)
    with pytest.raises(SharingError, match=rf"^tiny: the export to Hugging Face does not support {flag}"):
        export_model(monkeypatch, model, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [*EXACT.values(), {**ALL, "decoder_no_ffn": True}, {**ALL, "embedding_factor_dim": 4}],
    ids=[*EXACT, "adapters without FFN", "adapters and factorized embeddings"],
)
def test_ctranslate2_computes_the_same(options, data_dir, tmp_path):
    case = replace(BY_NAME["cycle"], options={}) if "sharing" in options else BY_NAME["cycle"]
    assert export_case(data_dir, tmp_path, case, "post", options).difference.largest < 0.01
