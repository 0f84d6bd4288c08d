"""The flags of component maps, and their canonical form."""

from __future__ import annotations

import pytest

from fairseq_sharing.component_sharing import resolve_sharing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import ComponentMap, StackSharing, format_sharing
from fairseq_sharing.parameter_sets import complete, find_borrowed

BOTH = {"encoder": 4, "decoder": 2}


def maps(sharing: StackSharing) -> dict[str, tuple[int, ...]]:
    return {component.component: component.labels for component in sharing.components}


def test_without_component_flags_the_result_is_that_of_the_layer_map():
    sharing = resolve_sharing({"sharing": "universal", "sharing_scope": "ffn"}, BOTH)
    assert sharing == {"encoder": StackSharing((0,) * 4, ("ffn",)), "decoder": StackSharing((0,) * 2, ("ffn",))}


def test_a_stack_overrides_both_stacks_component_by_component():
    options = {
        "component_sharing": "self_attn=universal; ffn=sequence:2; encoder_attn=universal",
        "encoder_component_sharing": "ffn=3,1,1,3",
    }
    sharing = resolve_sharing(options, BOTH)
    assert maps(sharing["encoder"]) == {"self_attn": (0,) * 4, "ffn": (0, 1, 1, 0), "layer_norm": (0, 1, 2, 3)}
    assert sharing["decoder"] == StackSharing((0, 0), ("self_attn", "encoder_attn"))
    assert sharing["encoder"].layer_map == (0, 1, 2, 3), "no two layers share all components"
    assert sharing["encoder"].scope == ("self_attn", "ffn")
    assert format_sharing(sharing["encoder"]) == "self_attn 0,0,0,0; ffn 0,1,1,0; layer_norm 0,1,2,3"


def test_components_without_a_map_of_their_own_follow_the_layer_map():
    sharing = resolve_sharing({"sharing": "cycle", "unique_layers": 2, "component_sharing": "ffn=universal"}, BOTH)
    assert maps(sharing["encoder"]) == {"self_attn": (0, 1, 0, 1), "ffn": (0,) * 4, "layer_norm": (0, 1, 0, 1)}
    assert sharing["encoder"].layer_map == (0, 1, 0, 1)
    assert sharing["encoder"].lenders(2) == {0: ("self_attn", "ffn", "layer_norm")}
    assert sharing["encoder"].lenders(3) == {1: ("self_attn", "layer_norm"), 0: ("ffn",)}


def test_across_stacks_labels_count_on_from_the_encoder_to_the_decoder():
    sharing = resolve_sharing({"cross_stack_sharing": "ffn=cycle:5;attention=by_depth;layer_norm=universal"}, BOTH)
    assert maps(sharing["encoder"]) == {"self_attn": (0, 1, 2, 3), "ffn": (0, 1, 2, 3), "layer_norm": (0,) * 4}
    decoder = maps(sharing["decoder"])
    assert decoder == {"self_attn": (0, 1), "encoder_attn": (0, 1), "ffn": (4, 0), "layer_norm": (0, 0)}
    assert {c.component: c.space for c in sharing["decoder"].components}["encoder_attn"] == "attention"


def test_a_map_across_stacks_that_crosses_nothing_is_one_of_each_stack():
    crossing = resolve_sharing({"cross_stack_sharing": "ffn=0,0,0,0,1,1"}, BOTH)
    assert crossing == {"encoder": StackSharing((0,) * 4, ("ffn",)), "decoder": StackSharing((0, 0), ("ffn",))}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("component_sharing", "ffn", "--component-sharing ffn: 'ffn'; allowed: COMPONENT=STRATEGY, separated by"),
        ("component_sharing", "", "--component-sharing : ''; allowed: COMPONENT=STRATEGY"),
        (
            "component_sharing",
            "mlp=universal",
            "each component of self_attn, encoder_attn, ffn, layer_norm at most once",
        ),
        ("component_sharing", "ffn=none;ffn=none", "'ffn=none'; allowed: "),
        ("encoder_component_sharing", "encoder_attn=none", "each component of self_attn, ffn, layer_norm at most once"),
        (
            "component_sharing",
            "ffn=cycle",
            "--component-sharing ffn=cycle: not a strategy for 4 encoder layers; allowed: none, universal,",
        ),
        ("component_sharing", "ffn=cycle:5", "cycle:M, cycle_rev:M with M from 1 to 4, or 4 labels such as 0,1,1,0"),
        ("component_sharing", "ffn=universal:1", "ffn=universal:1: not a strategy for 4 encoder layers"),
        ("component_sharing", "ffn=0,0", "ffn=0,0: not a strategy for 4 encoder layers"),
        (
            "decoder_component_sharing",
            "ffn=sandwich",
            "ffn=sandwich: not a strategy for 2 decoder layers; allowed: none, universal, sandwich",
        ),
        ("cross_stack_sharing", "encoder_attn=none", "each component of self_attn, ffn, layer_norm, attention at most"),
        (
            "cross_stack_sharing",
            "ffn=0,1",
            "--cross-stack-sharing ffn=0,1: not a strategy for 6 layers of ffn; allowed: by_depth, none,",
        ),
        ("cross_stack_sharing", "attention=none;self_attn=none", "attention includes self_attn; allowed: one map per"),
    ],
)
def test_bad_flags_are_refused_in_one_line(name, given, message):
    with pytest.raises(SharingError) as error:
        resolve_sharing({name: given}, BOTH)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sets_across_stacks_need_both_stacks():
    with pytest.raises(SharingError, match="--cross-stack-sharing ffn=universal: the model has only one stack"):
        resolve_sharing({"cross_stack_sharing": "ffn=universal"}, {"decoder": 2})


def test_omitted_names_are_found_without_the_model():
    """The decoder stores nothing of its attention, and only the norm that the encoder's layers do not have."""
    sharing = {
        "encoder": StackSharing.of(
            [ComponentMap("self_attn", (0,), "attention"), ComponentMap("layer_norm", (0,), "layer_norm")]
        ),
        "decoder": StackSharing.of(
            [
                ComponentMap("self_attn", (0, 1), "attention"),
                ComponentMap("encoder_attn", (1, 0), "attention"),
                ComponentMap("layer_norm", (0, 0), "layer_norm"),
            ]
        ),
    }
    norms = ["self_attn_layer_norm.weight", "encoder_attn_layer_norm.weight"]
    full = {
        "encoder": [["self_attn.k_proj.weight", norms[0]]],
        "decoder": [["self_attn.k_proj.weight", "encoder_attn.k_proj.weight", *norms]] * 2,
    }
    expected = {
        "decoder.layers.0.self_attn.k_proj.weight": "encoder.layers.0.self_attn.k_proj.weight",
        "decoder.layers.0.self_attn_layer_norm.weight": "encoder.layers.0.self_attn_layer_norm.weight",
        "decoder.layers.1.self_attn.k_proj.weight": "decoder.layers.0.encoder_attn.k_proj.weight",
        "decoder.layers.1.encoder_attn.k_proj.weight": "encoder.layers.0.self_attn.k_proj.weight",
        "decoder.layers.1.self_attn_layer_norm.weight": "encoder.layers.0.self_attn_layer_norm.weight",
        "decoder.layers.1.encoder_attn_layer_norm.weight": "decoder.layers.0.encoder_attn_layer_norm.weight",
    }
    assert find_borrowed(full, sharing) == expected
    stored = {
        "encoder": {0: full["encoder"][0]},
        "decoder": {0: ["encoder_attn.k_proj.weight", "encoder_attn_layer_norm.weight"]},
    }
    assert complete(stored, sharing) == expected
