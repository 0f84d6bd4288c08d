"""Descriptions of maps per component: lines, picture and counts."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from fairseq_sharing.description import counts
from fairseq_sharing.description.describe import describe

D, FFN, V, N = 16, 24, 50, 4
ATTENTION, FEED_FORWARD, NORM = 4 * (D * D + D), 2 * D * FFN + FFN + D, 2 * D


def write(tmp_path, **train):
    config = tmp_path / "tiny.yaml"
    sizes = {f"{stack}_{key}": value for stack in ("encoder", "decoder") for key, value in SIZES.items()}
    lines = [f"  {key}: {json.dumps(value)}" for key, value in {**BASE, **sizes, **train}.items()]
    config.write_text("\n".join(["dataset: toy", "train:", *lines]))
    return config


BASE = {"arch": "transformer_sharing", "share_all_embeddings": True}
SIZES = {"layers": N, "embed_dim": D, "ffn_embed_dim": FFN, "attention_heads": 2}


@pytest.fixture
def no_memory(monkeypatch):
    """Skip the estimate of the memory, which takes seconds and is part of test_counts_per_component."""
    monkeypatch.setattr(counts, "estimate_both", lambda *_: {})


@pytest.mark.usefixtures("no_memory")
def test_one_line_and_one_row_of_the_picture_per_component(tmp_path, capsys):
    maps = {
        "cross_stack_sharing": "attention=by_depth;ffn=0,0,1,1,1,1,2,2",
        "encoder_component_sharing": "layer_norm=cycle:2",
    }
    describe(write(tmp_path, **maps), vocabulary=V, length=7, svg=tmp_path / "maps.svg")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[:7]]
    assert lines == [
        "encoder self_attn N=4 M=4 0 1 2 3 uses 3 3 3 3, across stacks",
        "encoder ffn N=4 M=2 0 0 1 1 uses 2 4, across stacks",
        "encoder layer_norm N=4 M=2 0 1 0 1 uses 2 2",
        "decoder self_attn N=4 M=4 0 1 2 3 uses 3 3 3 3, across stacks",
        "decoder encoder_attn N=4 M=4 0 1 2 3 uses 3 3 3 3, across stacks",
        "decoder ffn N=4 M=2 1 1 2 2 uses 4 2, across stacks",
        "decoder layer_norm N=4 M=4 0 1 2 3 uses 1 1 1 1",
    ]
    svg = ElementTree.parse(tmp_path / "maps.svg")
    space = "{http://www.w3.org/2000/svg}"
    cells = [rect.get("fill") for rect in svg.iter(f"{space}rect")][1:]
    rows = [cells[i : i + N] for i in range(0, 7 * N, N)]
    assert len(cells) == 7 * N
    assert rows[0] == rows[3] == rows[4], "equal sets have equal colors in both stacks"
    assert rows[1][2:] == rows[5][:2]
    assert rows[5][2] not in rows[1]


def test_counts_per_component(tmp_path, capsys):
    describe(write(tmp_path, preset="tied_transformer_cross"), vocabulary=V, length=7, as_json=True)
    ours, vanilla = json.loads(capsys.readouterr().out)["models"]
    wanted = {"embeddings": V * D, "self_attn": N * ATTENTION, "encoder_attn": 0, "ffn": N * FEED_FORWARD}
    assert {name: ours["unique"][name] for name in wanted} == wanted
    assert ours["unique"]["layer_norm"] == N * 3 * NORM
    assert ours["effective"] == vanilla["unique"] == vanilla["effective"]
    assert ours["effective"]["encoder_attn"] == N * ATTENTION
    assert ours["maps"][3]["title"] == "decoder self_attn"
    assert ours["maps"][3]["uses"] == [3] * N


@pytest.mark.usefixtures("no_memory")
def test_a_scope_is_described_by_component(tmp_path, capsys):
    describe(write(tmp_path, sharing="universal", sharing_scope="ffn"), vocabulary=V, length=7)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[:3]]
    assert lines == [
        "encoder self_attn N=4 M=4 0 1 2 3 uses 1 1 1 1",
        "encoder ffn N=4 M=1 0 0 0 0 uses 4",
        "encoder layer_norm N=4 M=4 0 1 2 3 uses 1 1 1 1",
    ]
