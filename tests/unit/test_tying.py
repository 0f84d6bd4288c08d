"""Tying: identity and number of tensors, map changes, and the cost of building a model."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharing_cases import BY_NAME, LAYERS, SCOPE_PATTERNS
from tiny_models import EMBED, VOCABULARY, batch, build, build_case, component_sizes, loss

from fairseq_sharing.layer_map import StackSharing, make_layer_map
from fairseq_sharing.tying import StackBuilder, alias_names, in_scope, retie_stack, shared_names, tie_layer

STACKS = ("encoder", "decoder")
HELPERS = Path(__file__).resolve().parents[1] / "helpers"


def parameter_pairs(model, stack):
    """Iterate over all pairs of layers of a stack and all of their parameter names."""
    layers = getattr(model, stack).layers
    for second in range(LAYERS):
        for first in range(second):
            for name, parameter in layers[second].named_parameters():
                yield first, second, name, layers[first].get_parameter(name), parameter


def test_tied_tensors_are_one_object_and_all_others_are_not(case, model):
    for stack in STACKS:
        layer_map = case.layer_map(stack)
        for first, second, name, one, other in parameter_pairs(model, stack):
            tied = layer_map[first] == layer_map[second] and case.ties(name)
            assert (one is other) == tied, f"{stack} layers {first} and {second}, {name}"
            assert (one.data_ptr() == other.data_ptr()) == tied


def test_stacks_share_nothing_with_each_other(model):
    encoder = {id(parameter) for parameter in model.encoder.layers.parameters()}
    assert not encoder & {id(parameter) for parameter in model.decoder.layers.parameters()}


def test_model_reports_its_maps(case, model):
    for stack in STACKS:
        sharing = model.sharing[stack]
        assert sharing.layer_map == case.layer_map(stack)
        assert set(sharing.scope) == set(case.scope)


def test_layers_and_their_modules_are_all_different_objects(model):
    """A reused module would share its decoding cache."""
    for stack in STACKS:
        layers = list(getattr(model, stack).layers)
        modules = [id(module) for layer in layers for module in layer.modules()]
        assert len(layers) == LAYERS
        assert len(modules) == len(set(modules))


def closed_form(case, norm: str) -> int:
    """Count the values of a model: one embedding matrix, M or N of each component, the final LayerNorms of pre-norm."""
    total = VOCABULARY * EMBED
    for stack in STACKS:
        m = len(set(case.layer_map(stack)))
        for component, size in component_sizes(stack).items():
            total += size * (m if case.scope == ("layer",) or component in case.scope else LAYERS)
    return total + (2 * 2 * EMBED if norm == "pre" else 0)


def test_parameter_count_is_the_closed_form(case, norm, model):
    assert sum(parameter.numel() for parameter in model.parameters()) == closed_form(case, norm)


@pytest.mark.parametrize(
    ("options", "matrices"),
    [
        ({"share_all_embeddings": False}, 3),
        ({"share_all_embeddings": False, "share_decoder_input_output_embed": True}, 2),
        ({"share_all_embeddings": True}, 1),
    ],
)
def test_shared_embeddings_are_counted_once(options, matrices):
    case = BY_NAME["cycle_rev"]
    model = build("pre", **case.options, **options)
    expected = closed_form(case, "pre") + (matrices - 1) * VOCABULARY * EMBED
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_gradient_of_a_shared_tensor_is_the_sum_over_separate_copies(case, model, vanilla):
    inputs = batch()
    loss(model, inputs).backward()
    loss(vanilla, inputs).backward()
    summed: dict[str, torch.Tensor] = {}
    for name, parameter in vanilla.named_parameters():
        source = case.source(name)
        summed[source] = summed.get(source, 0) + parameter.grad
    ours = dict(model.named_parameters())
    assert ours.keys() == summed.keys()
    rounding = 1e-5 if case.options.get("fast") else 2e-6  # different kernels, different order of summation
    for name, parameter in ours.items():
        scale = summed[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(parameter.grad / scale, summed[name] / scale, rtol=0, atol=rounding, msg=name)


def test_optimizer_sees_each_tensor_once(case, norm):
    """An update changes a shared tensor once, regardless of how many layers use it."""
    model = build_case(case, norm)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, batch()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * parameter.grad, rtol=1e-6, atol=1e-6, msg=name
        )


def test_ties_survive_half_precision_and_copying(case, model):
    copied = copy.deepcopy(model)
    for changed in (copied, copied.half(), copied.float()):
        names = dict(changed.named_parameters(remove_duplicate=False))
        for name, parameter in names.items():
            if ".layers." in name:
                assert parameter is names[case.source(name)], name


def test_owners_start_from_the_values_of_a_vanilla_model_of_m_layers():
    """Building a tied layer draws no random numbers: the same seed gives the same initial weights."""
    shared = build(sharing="sequence", unique_layers=3, seed=5)
    vanilla = build(encoder_layers=3, decoder_layers=3, seed=5, arch="transformer")
    expected = dict(vanilla.named_parameters())
    for name, parameter in shared.named_parameters():
        head, dot, rest = name.partition(".layers.")
        if dot:
            depth, _, leaf = rest.partition(".")
            name = f"{head}.layers.{int(depth) // 2}.{leaf}"
        assert torch.equal(parameter, expected[name]), name


def test_partly_shared_layer_keeps_initial_values_of_its_own():
    model = build("post", sharing="universal", sharing_scope="ffn")
    queries = {layer.self_attn.q_proj.weight.sum().item() for layer in model.encoder.layers}
    assert len(queries) == LAYERS
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert all((layer.final_layer_norm.weight == 1).all() for layer in model.encoder.layers)


class DepthLayer(torch.nn.Module):
    """A layer with a weight that belongs to its depth."""

    depth_parameters = ("residual",)

    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(2, 2)
        self.residual = torch.nn.Parameter(torch.ones(2))


def test_parameter_of_a_depth_is_never_shared():
    builder = StackBuilder(StackSharing((0, 0, 0)))
    layers = [builder.build(DepthLayer) for _ in range(3)]
    assert builder.done
    assert layers[2].fc1.weight is layers[0].fc1.weight
    assert len({id(layer.residual) for layer in layers}) == 3
    assert all(torch.equal(layer.residual, torch.ones(2)) for layer in layers)
    assert list(shared_names(layers[1], ("layer",))) == ["fc1.weight", "fc1.bias"]


def test_tied_layer_drops_what_it_had():
    layer, owner = DepthLayer(), DepthLayer()
    own = layer.residual
    tie_layer(layer, owner)
    assert layer.fc1.weight is owner.fc1.weight
    assert layer.fc1.bias is owner.fc1.bias
    assert layer.residual is own


def test_every_parameter_of_a_layer_belongs_to_one_scope(model):
    for stack in STACKS:
        for name, _ in getattr(model, stack).layers[0].named_parameters():
            scopes = [s for s in SCOPE_PATTERNS if s != "layer" and in_scope(name, (s,))]
            assert scopes == [s for s in SCOPE_PATTERNS if s != "layer" and re.match(SCOPE_PATTERNS[s], name)]
            assert len(scopes) == 1, name
            assert in_scope(name, ("layer",))


def test_names_of_what_is_borrowed(case, model):
    for stack in STACKS:
        borrowed = alias_names(getattr(model, stack), model.sharing[stack])
        expected = {
            name.removeprefix(f"{stack}."): case.source(name).removeprefix(f"{stack}.")
            for name, _ in model.named_parameters(remove_duplicate=False)
            if name.startswith(f"{stack}.layers.") and case.source(name) != name
        }
        assert borrowed == expected


# Changing the map of a built model.


def values_of(stack):
    return [{name: p.detach().clone() for name, p in layer.named_parameters()} for layer in stack.layers]


def same_values(layer, values) -> bool:
    return all(torch.equal(parameter, values[name]) for name, parameter in layer.named_parameters())


def test_untied_layers_own_copies_of_what_they_shared(case, norm):
    model = build_case(case, norm)
    inputs = batch()
    with torch.no_grad():
        before = model.eval()(**inputs)[0]
    for stack in (model.encoder, model.decoder):
        owners = {id(parameter) for parameter in stack.parameters()}
        values = values_of(stack)
        stack.change_map(StackSharing(tuple(range(LAYERS))))
        parameters = [p for layer in stack.layers for p in layer.parameters()]
        assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
        assert all(same_values(layer, v) for layer, v in zip(stack.layers, values, strict=True))
        assert owners <= {id(parameter) for parameter in stack.parameters()}, "an owner lost its tensor"
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in parameters)
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], before), "changing the map does not change the output"
        values = values_of(model.encoder)
        for parameter in model.encoder.layers[0].parameters():
            parameter.add_(1)
    untouched = zip(model.encoder.layers[1:], values[1:], strict=True)
    assert all(same_values(layer, v) for layer, v in untouched), "a layer changed with another one"


def test_newly_tied_layers_take_the_owner_s_tensor():
    model = build_case(BY_NAME["none"], "pre")
    owner = model.encoder.layers[0].fc1.weight
    model.encoder.change_map(StackSharing((0, 1, 0, 1, 0, 1)))
    assert all(model.encoder.layers[depth].fc1.weight is owner for depth in (2, 4))
    assert model.sharing["encoder"].layer_map == (0, 1, 0, 1, 0, 1)
    assert model.sharing["decoder"].layer_map == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("new", ["0,1,1,0,2,2", "0,0,1,1,2,2", "0,1,2,3,4,5", "0,0,0,0,0,0", "0,1,2,3,0,1"])
@pytest.mark.parametrize("old", ["0,1,2,2,1,0", "0,0,1,1,2,2", "0,1,1,1,1,2"])
def test_layer_with_a_set_of_its_own_starts_from_what_it_used(old, new):
    model = build("post", sharing="custom", layer_map=old)
    stack = model.decoder
    values = values_of(stack)
    wanted = StackSharing(make_layer_map("custom", LAYERS, custom=new))
    retie_stack(stack, model.sharing["decoder"], wanted)
    for depth, group in enumerate(wanted.layer_map):
        owner = wanted.layer_map.index(group)
        assert same_values(stack.layers[depth], values[owner]), "a set starts from the values of its owner"
        for name, parameter in stack.layers[depth].named_parameters():
            assert parameter is stack.layers[owner].get_parameter(name)
    distinct = {p.untyped_storage().data_ptr() for layer in stack.layers for p in layer.parameters()}
    assert len(distinct) == len(set(wanted.layer_map)) * len(values[0])


def test_scope_can_change_with_the_map():
    model = build_case(BY_NAME["cycle"], "pre")
    values = values_of(model.encoder)
    model.encoder.change_map(StackSharing((0, 1, 2, 0, 1, 2), ("ffn",)))
    first, fourth = model.encoder.layers[0], model.encoder.layers[3]
    assert fourth.fc1.weight is first.fc1.weight
    assert fourth.self_attn.q_proj.weight is not first.self_attn.q_proj.weight
    assert same_values(fourth, values[3])


def test_change_of_the_map_gives_the_same_outputs_after_one_more_change():
    """Untying and tying again restores the original model if no update happened."""
    case = BY_NAME["cycle_rev"]
    model = build_case(case, "post").eval()
    inputs = batch()
    with torch.no_grad():
        before = model(**inputs)[0]
        for layer_map in ((0, 1, 2, 3, 4, 5), case.decoder):
            for stack in (model.encoder, model.decoder):
                stack.change_map(StackSharing(layer_map))
        assert torch.equal(model(**inputs)[0], before)
    assert sum(p.numel() for p in model.parameters()) == closed_form(case, "post")


# Memory: each model is built in a separate process, forked after all imports.
PEAK_SCRIPT = """
import json, os, resource, sys
sys.path[:0] = sys.argv[1:3]
from tiny_models import build

def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

def peak_mib(**options):
    read, write = os.pipe()
    if os.fork() == 0:
        build("pre")  # reads the pages of torch's libraries that a build touches
        before = resident_kib()
        build("pre", **options)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, str(used / 1024).encode())
        os._exit(0)
    os.wait()
    return float(os.read(read, 100))

wide = dict(encoder_embed_dim=512, decoder_embed_dim=512, encoder_ffn_embed_dim=2048, decoder_ffn_embed_dim=2048)

def layers(n):
    return dict(wide, encoder_layers=n, decoder_layers=n)

print(json.dumps({
    "shared 6 of 48": peak_mib(**layers(48), sharing="cycle_rev", unique_layers=6),
    "shared 6 of 6": peak_mib(**layers(6), sharing="cycle_rev", unique_layers=6),
    "vanilla 12": peak_mib(**layers(12), arch="transformer"),
}))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_building_48_layers_of_6_sets_peaks_at_the_memory_of_6_layers():
    done = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, HELPERS, HELPERS.parents[1]],
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    peak = json.loads(done.stdout.splitlines()[-1])
    six_layers = 4 * 6 * (4 * 512 * 512 * 3 + 2 * 2 * 512 * 2048) / 2**20  # MiB of fp32 matrices in both stacks
    assert 0.9 * six_layers < peak["shared 6 of 6"] < 1.2 * six_layers, (
        f"the measurement is not dominated by the weights: {peak}"
    )
    assert peak["vanilla 12"] > 1.8 * peak["shared 6 of 6"], f"the measurement misses layers: {peak}"
    assert peak["shared 6 of 48"] < 1.1 * peak["shared 6 of 6"], peak
