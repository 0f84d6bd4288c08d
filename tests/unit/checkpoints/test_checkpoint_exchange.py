"""Load checkpoints into models: vanilla, materialized, with fewer layers, with another map, in ensembles."""

from __future__ import annotations

import dataclasses
import io
import logging

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models.transformer import TransformerModel
from sharing_cases import BY_NAME
from tiny_models import (
    assert_equal_models,
    assert_same_translations,
    assert_tied,
    batch,
    build,
    build_case,
    dictionary,
    make_trainer,
    perturb,
    save,
    to_bytes,
    train_step,
    translate,
)

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.checkpoints.sharing_state import initializing
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import StackSharing
from fairseq_sharing.models.sharing_options import SharingOptions
from fairseq_sharing.models.transformer_sharing import TransformerSharingModel

# Vanilla and materialized files.


def test_vanilla_checkpoint_loads_into_sharing_none(norm):
    vanilla = perturb(build(norm, arch="transformer")).eval()
    ours = build(norm, seed=5).eval()
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(ours(**batch())[0], vanilla(**batch())[0])


def test_vanilla_trainer_s_file_loads_into_sharing_none(norm, data_dir, tmp_path):
    none = BY_NAME["none"]
    trainer = make_trainer(data_dir, none, norm, arch="transformer")
    train_step(trainer)
    path = save(trainer, tmp_path / "checkpoint1.pt")
    resumed = make_trainer(data_dir, none, norm)
    resumed.load_checkpoint(str(path))
    assert resumed.get_num_updates() == 1
    for t in (trainer, resumed):
        train_step(t, seed=4)
    vanilla = dict(trainer.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, vanilla[name]), name


def test_vanilla_weights_that_differ_in_tied_layers_are_refused(case, norm):
    vanilla = perturb(build(norm, arch="transformer"))
    ours = build(norm, **case.options)
    if not case.shares:
        ours.load_state_dict(vanilla.state_dict())
        return
    before = {name: value.detach().clone() for name, value in ours.named_parameters()}
    with pytest.raises(
        SharingError, match=r"^the checkpoint has different weights for (.+) and (.+), which the model "
    ) as e:
        ours.load_state_dict(vanilla.state_dict())
    assert str(e.value).endswith("shares; allowed: --sharing none for a vanilla model with the same number of layers")
    assert all(torch.equal(value, before[name]) for name, value in ours.named_parameters()), "nothing was loaded"


def test_vanilla_model_with_copied_weights_loads_into_the_shared_one(case, norm, model, vanilla):
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_equal_models(ours, model)
    assert_tied(case, ours)


@pytest.fixture
def materialized(trained):
    """The materialized file of a case's checkpoint; must not be modified."""
    path = trained.path.with_name("materialized.pt")
    if not path.exists():
        save_atomically(materialize(load_checkpoint(trained.path)), path)
    return path


def test_materialized_file_is_fairseq_s_own_transformer_and_translates_the_same(case, trained, materialized):
    (stock,), cfg = checkpoint_utils.load_model_ensemble([str(materialized)], strict=True)
    assert type(stock) is TransformerModel
    assert cfg.model["_name"] == cfg.model["arch"] == "transformer"
    ours = trained.model
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(**batch())[0], ours(**batch())[0], rtol=0, atol=case.rounding)
    # The model has hypotheses that differ in their rounding alone; the fast path rounds otherwise.
    compared = 1 if case.options.get("fast") else None
    assert_same_translations(*([found[:compared] for found in translate([model])] for model in (stock, ours)))


def test_materialized_file_names_fairseq_s_own_task_loss_and_optimizer(trained):
    fused = load_checkpoint(trained.path)
    fused["cfg"]["criterion"]["_name"] = "fused_label_smoothed_cross_entropy"
    fused["cfg"]["optimizer"]["_name"] = "fused_adam"
    fused["cfg"]["task"]["_name"] = "translation_sharing"
    cfg = materialize(fused)["cfg"]
    stock = {"task": "translation", "criterion": "label_smoothed_cross_entropy", "optimizer": "adam"}
    assert {part: cfg[part]["_name"] for part in stock} == {part: cfg["model"][part] for part in stock} == stock


def test_materialized_file_has_no_option_of_this_package(trained):
    ours = load_checkpoint(trained.path)
    own = {field.name for field in dataclasses.fields(SharingOptions)} - {"_name"}
    assert own & set(vars(ours["cfg"]["model"])), "the file has some of them"
    vars(ours["cfg"]["model"]).update(dict.fromkeys(own - set(vars(ours["cfg"]["model"]))))
    assert not own & set(materialize(ours)["cfg"]["model"])


def test_materialized_file_is_of_plain_things_and_no_larger(trained, materialized):
    def check(value, where="file"):
        plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)
        assert isinstance(value, plain), f"{where}: {type(value)}"
        if isinstance(value, dict):
            for key, item in value.items():
                check(item, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for item in value:
                check(item, where)

    loaded = torch.load(materialized, weights_only=True)
    check(loaded)
    assert "_extra_state" not in loaded["model"]
    assert not [
        key for key in loaded["cfg"]["model"] if "sharing" in key or "unique_layers" in key or "layer_map" in key
    ]
    sizes = [len(to_bytes({"model": state})) for state in (loaded["model"], trained.model.state_dict())]
    assert sizes[0] - sizes[1] < 300 * (len(loaded["model"]) + 1), "shared storages are written once"


@pytest.mark.parametrize(
    ("option", "value", "flag"),
    [
        ("admin", "profile", "--admin profile"),
        ("depth_signal", "learned", "--depth-signal learned"),
        ("act", "both", "--act both"),
        ("position_per_depth", True, "--position-per-depth"),
        ("encoder_no_ffn", True, "--encoder-no-ffn"),
        ("decoder_no_ffn", True, "--decoder-no-ffn"),
        ("embedding_factor_dim", 8, "--embedding-factor-dim 8"),
        ("deepnorm", True, "--deepnorm"),
        ("b2t", True, "--b2t"),
    ],
)
def test_models_that_stock_fairseq_does_not_support_are_not_materialized(option, value, flag):
    model = {"arch": "transformer_sharing", option: value}
    with pytest.raises(SharingError, match=f"^--materialize cannot write a model with {flag}: stock fairseq"):
        materialize({"cfg": {"model": model}, "model": {}})


def test_materialized_file_loads_back_into_the_shared_model(case, norm, trained, materialized):
    loaded = torch.load(materialized, weights_only=True)
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(loaded["model"], strict=True)
    assert_equal_models(ours, trained.model)
    assert_tied(case, ours)


def test_materializing_does_not_modify_its_argument(trained):
    original = load_checkpoint(trained.path)
    keys = list(original["model"])
    materialize(original)
    assert list(original["model"]) == keys
    assert vars(original["cfg"]["model"])["arch"] == "transformer_sharing"
    assert "last_optimizer_state" in original


def test_only_shared_models_are_materialized(data_dir, tmp_path):
    path = save(make_trainer(data_dir, BY_NAME["none"], arch="transformer"), tmp_path / "vanilla.pt")
    with pytest.raises(SharingError) as caught:
        materialize(load_checkpoint(path))
    assert str(caught.value) == "--materialize requires a transformer_sharing model, got transformer"


# Starting from another model.


@pytest.fixture
def starts_from_another_model():
    token = initializing.set(True)
    yield
    initializing.reset(token)


def full_layer_maps():
    return [name for name, case in BY_NAME.items() if case.scope == ("layer",) and name != "none"]


@pytest.mark.parametrize("name", full_layer_maps())
@pytest.mark.parametrize("arch", ["transformer", "transformer_sharing"])
def test_finetuning_starts_from_a_vanilla_model_of_m_layers(name, arch, norm, starts_from_another_model):
    """Vanilla layer i initializes parameter set i."""
    case = BY_NAME[name]
    sizes = {f"{stack}_layers": len(set(case.layer_map(stack))) for stack in ("encoder", "decoder")}
    vanilla = perturb(build(norm, arch=arch, **sizes))
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_tied(case, ours)
    for stack in ("encoder", "decoder"):
        for depth, label in enumerate(case.layer_map(stack)):
            for parameter_name, parameter in getattr(ours, stack).layers[depth].named_parameters():
                given = getattr(vanilla, stack).layers[label].get_parameter(parameter_name)
                assert torch.equal(parameter, given), f"{stack} layer {depth}"
    assert torch.equal(ours.decoder.embed_tokens.weight, vanilla.decoder.embed_tokens.weight)


def test_finetuning_starts_from_a_vanilla_model_of_n_layers(case, norm, model, vanilla, starts_from_another_model):
    ours = build(norm, seed=5, **case.options)
    ours.load_state_dict(vanilla.state_dict(), strict=True)
    assert_equal_models(ours, model)


def test_resuming_from_a_vanilla_model_of_m_layers_is_refused():
    vanilla = build(arch="transformer", encoder_layers=3, decoder_layers=3)
    with pytest.raises(SharingError, match=r"^the checkpoint's encoder has 3 vanilla layers, but the options "):
        build(sharing="cycle", unique_layers=3).load_state_dict(vanilla.state_dict())


def test_trainer_finetunes_and_refuses_by_whether_the_optimizer_is_reset(data_dir, tmp_path):
    """--finetune-from-model resets the optimizer; a resumed training does not."""
    three = make_trainer(data_dir, BY_NAME["none"], arch="transformer", encoder_layers=3, decoder_layers=3)
    train_step(three)
    path = save(three, tmp_path / "vanilla.pt")
    shared = make_trainer(data_dir, BY_NAME["cycle"])
    with pytest.raises(
        SharingError, match=rf"^{path}: the checkpoint's encoder has 3 vanilla layers, but the options "
    ):
        shared.load_checkpoint(str(path))
    assert not initializing.get()
    shared.load_checkpoint(str(path), reset_optimizer=True, reset_lr_scheduler=True, reset_meters=True)
    assert torch.equal(shared.model.encoder.layers[4].fc1.weight, three.model.encoder.layers[1].fc1.weight)
    assert not initializing.get()
    train_step(shared, seed=4)


# Another map or size.


def test_checkpoint_of_another_map_is_refused(case, norm, model):
    other = build(norm, sharing="custom", layer_map="0,1,2,3,3,3")
    with pytest.raises(SharingError) as caught:
        other.load_state_dict(model.state_dict())
    had = ",".join(map(str, case.encoder))
    scope = ",".join(model.sharing["encoder"].scope)
    assert str(caught.value).startswith(
        f"the checkpoint's encoder has the layer map {had} ({scope}), but the options --encoder-layers and --sharing "
        "give 0,1,2,3,3,3 (layer); allowed: "
    )


def test_checkpoint_of_another_scope_is_refused():
    state = build(sharing="universal").state_dict()
    with pytest.raises(SharingError, match=r"0,0,0,0,0,0 \(layer\), .* give 0,0,0,0,0,0 \(ffn\); allowed: "):
        build(sharing="universal", sharing_scope="ffn").load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"encoder_ffn_embed_dim": 48}, "--encoder-ffn-embed-dim"),
        ({"decoder_ffn_embed_dim": 48}, "--decoder-ffn-embed-dim"),
        ({"encoder_embed_dim": 24, "decoder_embed_dim": 24}, "--encoder-embed-dim"),
        ({"layernorm_embedding": True}, "--arch and its options"),
        ({"encoder_layers": 4, "encoder_unique_layers": 3}, "--encoder-layers and --sharing"),
    ],
)
def test_checkpoint_of_another_size_is_refused_by_flag_in_one_line(change, flag):
    options = BY_NAME["cycle"].options
    with pytest.raises(SharingError) as caught:
        build(**options, **change).load_state_dict(build(**options).state_dict())
    assert flag in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unexpected_tensors_are_refused(model, case, norm):
    other = build(norm, seed=5, **case.options)
    for change in (lambda s: s.pop("encoder.layers.0.fc1.weight"), lambda s: s.update({"encoder.more": torch.ones(1)})):
        state = model.state_dict()
        change(state)
        with pytest.raises(SharingError, match=r"^the checkpoint does not fit the model; check "):
            other.load_state_dict(state, strict=True)


def test_a_map_that_a_schedule_changed_is_adopted_and_logged(case, norm, caplog):
    model = build_case(case, norm).eval()
    for stack, labels in (("encoder", (0, 0, 1, 1, 1, 2)), ("decoder", (0, 1, 2, 3, 4, 5))):
        getattr(model, stack).change_map(StackSharing(labels))
    model.map_changed_by = "a schedule at update 100"
    perturb(model, seed=12)
    other = build(norm, seed=5, **case.options).eval()
    with caplog.at_level(logging.INFO, logger="fairseq_sharing"):
        other.load_state_dict(torch.load(io.BytesIO(to_bytes(model.state_dict())), weights_only=True))
    assert other.sharing == model.sharing
    assert other.map_changed_by == "a schedule at update 100"
    assert_equal_models(other, model)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fairseq_sharing")]
    assert "encoder map of the checkpoint: 0,0,1,1,1,2 (a schedule at update 100)" in told
    assert any(line.startswith("decoder map of the checkpoint: 0,1,2,3,4,5") for line in told) == case.shares
    with torch.no_grad():
        assert torch.equal(other(**batch())[0], model(**batch())[0])
    assert other.state_dict()["_extra_state"] == model.state_dict()["_extra_state"]


def test_a_map_that_no_schedule_changed_is_not_adopted():
    model, other = build(sharing="cycle", unique_layers=2), build(sharing="cycle", unique_layers=3)
    assert "map_changed_by" not in model.state_dict()["_extra_state"]
    with pytest.raises(SharingError, match="0,1,0,1,0,1"):
        other.load_state_dict(model.state_dict())


# From Python, and several models at once.


def test_from_pretrained_gives_the_trained_model(case, norm, trained, data_dir):
    hub = TransformerSharingModel.from_pretrained(str(trained.path.parent), trained.path.name, str(data_dir))
    assert_equal_models(hub.models[0], trained.model)
    assert_tied(case, hub.models[0])
    words = hub.translate("w3 w4 w5", beam=2, max_len_b=9).split()
    assert words
    assert set(words) <= set(dictionary().symbols)


def test_models_of_different_maps_make_an_ensemble(data_dir, tmp_path, norm):
    paths = []
    for name in ("cycle_rev", "sandwich", "none"):
        paths.append(str(save(make_trainer(data_dir, BY_NAME[name], norm), tmp_path / f"{name}.pt")))
    vanilla = make_trainer(data_dir, BY_NAME["none"], norm, arch="transformer")
    paths.append(str(save(vanilla, tmp_path / "vanilla.pt")))
    models, _cfg = checkpoint_utils.load_model_ensemble(paths)
    maps = [[s.layer_map for s in m.sharing.values()] for m in models[:3]]
    assert maps == [[BY_NAME[name].encoder] * 2 for name in ("cycle_rev", "sandwich", "none")]
    together = translate(models)
    # The probability of the first word is the mean over the models.
    with torch.no_grad():
        inputs = batch()
        inputs["prev_output_tokens"] = torch.full((3, 1), 2)
        probabilities = [m.eval().get_normalized_probs(m(**inputs), log_probs=False)[:, 0] for m in models]
    mean = torch.stack(probabilities).mean(0).log()
    for sentence, hypotheses in enumerate(together):
        best = hypotheses[0]
        torch.testing.assert_close(best["positional_scores"][0], mean[sentence, best["tokens"][0]], rtol=0, atol=1e-5)
