"""Training and validation at several depths, in fairseq's trainer."""

from __future__ import annotations

import itertools

import pytest
import torch
from fairseq.logging import metrics
from scheduled_training import make_trainer, sample, train
from tiny_models import arguments, batch, build, perturb, save, tensors

from fairseq_sharing import flags
from fairseq_sharing.checkpoints.files import load_checkpoint
from fairseq_sharing.checkpoints.recorded_state import recorded_extra
from fairseq_sharing.depths.losses import aligned_loss
from fairseq_sharing.errors import SharingError

CYCLE = {"sharing": "cycle", "unique_layers": 2}  # 0 1 0 1
SETTINGS = [{"encoder": n, "decoder": n} for n in (2, 3, 4)]
ALIGNED = {"decoder_depths": "2,3,4", "depth_loss": "aligned"}


@pytest.fixture
def depths_run(monkeypatch):
    """Record the depth of each training step."""
    from fairseq_sharing.depths.model import DepthModel

    drawn: list[dict[str, int]] = []
    draw_depth = DepthModel.draw_depth

    def recording(model, update):
        draw_depth(model, update)
        model.train()
        drawn.append({name: len(stack.active) for name, stack in model.stacks.items()})

    monkeypatch.setattr(DepthModel, "draw_depth", recording)
    return drawn


def trainer_of(data_dir, *words, **options):
    return make_trainer(data_dir, *words, **{**CYCLE, "task": "translation", **options})


def assert_same_state(one, other):
    """Compare the weights and moments of two trainings."""
    states = [tensors(trainer.get_model().state_dict()) for trainer in (one, other)]
    for number, moments in trainer_state(one).items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(trainer_state(other)[number][name]))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def trainer_state(trainer):
    return trainer.optimizer.state_dict()["state"]


def test_full_depth_alone_changes_no_bit(data_dir):
    trainers = [trainer_of(data_dir, **options) for options in ({}, {"depths": "4"})]
    for trainer in trainers:
        train(trainer, 3, micro_batches=2)
    assert_same_state(*trainers)
    assert "depths" not in trainers[1].get_model().state_dict()["_extra_state"]


def test_steps_run_at_the_drawn_depths(data_dir, depths_run):
    trainer = trainer_of(data_dir, depths="2,3,4")
    train(trainer, 4, micro_batches=3)
    depths = trainer.get_model().depths
    assert depths_run == [depths.draw(update, micro) for update, micro in itertools.product(range(4), range(3))]
    assert len({tuple(setting.values()) for setting in depths_run}) == 3


def test_seed_changes_the_depths(data_dir, depths_run):
    for seed in (1, 2):
        train(trainer_of(data_dir, f"--seed={seed}", depths="2,3,4"), 6)
    assert depths_run[:6] != depths_run[6:]


def test_resumed_run_repeats_the_depths_bit_for_bit(data_dir, tmp_path, depths_run):
    one = trainer_of(data_dir, depths="2,3,4", dropout=0.1)
    train(one, 3, micro_batches=2)
    path = save(one, tmp_path / "checkpoint.pt")
    train(one, 4, micro_batches=2)
    resumed = trainer_of(data_dir, depths="2,3,4", dropout=0.1)
    resumed.load_checkpoint(str(path))
    train(resumed, 4, micro_batches=2)
    assert depths_run[6:14] == depths_run[14:]
    assert_same_state(one, resumed)


def test_checkpoint_states_the_trained_depths(data_dir, tmp_path):
    trainer = trainer_of(data_dir, decoder_depths="2,4")
    path = save(trainer, tmp_path / "checkpoint.pt")
    checkpoint = load_checkpoint(path)
    assert recorded_extra(checkpoint["model"])["depths"] == [
        {"encoder": 4, "decoder": 2},
        {"encoder": 4, "decoder": 4},
    ]
    assert checkpoint["cfg"]["model"].decoder_depths == "2,4"


def test_admin_is_profiled_with_all_layers(data_dir):
    weights = []
    for options in ({}, {"depths": "2,4", "depth_sampling": "1,0"}):
        trainer = trainer_of(data_dir, norm="post", admin="profile", **options)
        with metrics.aggregate():
            trainer.train_step([sample(1)])
        weights.append([layer.residual_weight.detach()[:, 0] for layer in trainer.get_model().decoder.layers])
    for whole, limited in zip(*weights, strict=True):
        torch.testing.assert_close(whole, limited, rtol=0, atol=0.05)
    assert weights[1][3].min() > 1.2


def losses(data_dir, update_freq=1, **options):
    """Return the gradients and weights after one update on two batches."""
    trainer = trainer_of(data_dir, f"--update-freq={update_freq}", **options)
    with metrics.aggregate() as logged:
        trainer.train_step([sample(1), sample(2)])
    named = trainer.get_model().named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, logged.get_smoothed_values()


@pytest.mark.parametrize("criterion", ["label_smoothed_cross_entropy", "fused_label_smoothed_cross_entropy"])
@pytest.mark.parametrize(("index", "depth"), list(enumerate((2, 3, 4))))
def test_aligned_loss_of_one_depth_equals_the_sampled_loss_at_it(data_dir, criterion, index, depth, norm):
    weights = ",".join("1" if number == index else "0" for number in range(3))
    options = {"decoder_depths": "2,3,4", "depth_sampling": weights, "criterion": criterion, "norm": norm}
    (aligned, logged), (sampled, expected) = (
        losses(data_dir, depth_loss=loss, **options) for loss in ("aligned", "sampled")
    )
    for name, gradient in sampled.items():
        torch.testing.assert_close(aligned[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert all(not aligned[name].any() for name in aligned.keys() - sampled.keys())
    assert logged["loss"] == expected["loss"]
    assert logged[f"nll_loss_e4d{depth}" if depth < 4 else "nll_loss_d4"] == logged["nll_loss"]


def test_aligned_loss_is_the_weighted_sum_over_depths(norm):
    model = perturb(build(norm, encoder_layers=4, decoder_layers=4, **CYCLE, **ALIGNED)).train()
    depths = model.depths
    assert depths.probabilities == (0.25, 0.25, 0.5)

    def criterion(model, sample):
        log_probs = model.get_normalized_probs(model(**sample), log_probs=True)
        loss = -log_probs[..., 7].sum()
        return loss, 1, {"loss": loss.data}

    total, _, logged = aligned_loss(criterion, depths, model, batch())
    expected = []
    for setting in depths.settings:
        model._limit(setting, training=True)
        expected.append(criterion(model, batch())[0])
    weighted = sum(p * value for p, value in zip(depths.probabilities, expected, strict=True))
    torch.testing.assert_close(total, weighted)
    assert logged["loss"] == total
    assert [logged[f"nll_loss_{name}"] for name in ("e4d2", "e4d3", "d4")] == pytest.approx(
        [v.item() for v in expected]
    )
    gradients = [torch.autograd.grad(value, list(model.parameters()), allow_unused=True) for value in (total, weighted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_aligned_loss_does_not_depend_on_the_split_of_a_batch(data_dir):
    whole, parts = trainer_of(data_dir, **ALIGNED), trainer_of(data_dir, "--update-freq=3", **ALIGNED)
    one = sample(1)
    with metrics.aggregate():
        whole.train_step([one])
        rows = []
        for row in range(3):
            inputs = {name: value[row : row + 1] for name, value in one["net_input"].items()}
            target = one["target"][row : row + 1]
            rows.append(
                {**one, "net_input": inputs, "target": target, "nsentences": 1, "ntokens": int((target != 1).sum())}
            )
        parts.train_step(rows)
    for (name, p), q in zip(whole.get_model().named_parameters(), parts.get_model().parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "criterion", ["cross_entropy", "label_smoothed_cross_entropy", "fused_label_smoothed_cross_entropy"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_logs_the_loss_of_every_depth(data_dir, criterion, precision):
    options = {"criterion": criterion, "fast": precision == "bf16", "precision": precision}
    trainer = trainer_of(data_dir, depths="2,3,4", **options)
    train(trainer, 1)
    with metrics.aggregate(new_root=True) as logged:
        trainer.valid_step(sample(5))
        trainer.valid_step(sample(6))
    values = logged.get_smoothed_values()
    model = trainer.get_model()
    for setting in SETTINGS:
        model.use_depth(setting)
        with metrics.aggregate(new_root=True) as alone:
            for seed in (5, 6):
                log = trainer.criterion(model, sample(seed))[2]
                trainer.criterion.reduce_metrics([log])
        expected = alone.get_smoothed_values()
        found = values[f"nll_loss_d{setting['decoder']}"]
        assert found == pytest.approx(float(expected.get("nll_loss", expected["loss"])), abs=2e-3)
    assert values["nll_loss_d4"] == pytest.approx(values.get("nll_loss", values["loss"]), abs=1e-3)
    assert len({values[f"nll_loss_d{n}"] for n in (2, 3, 4)}) == 3
    model.use_depth(None)


def test_validation_leaves_the_training_as_it_is(data_dir):
    trainers = [trainer_of(data_dir, depths="2,3,4", dropout=0.1) for _ in range(2)]
    for number, trainer in enumerate(trainers):
        train(trainer, 2)
        if number:
            with metrics.aggregate(new_root=True):
                trainer.valid_step(sample(5))
        train(trainer, 2)
    assert_same_state(*trainers)


def test_best_checkpoint_can_use_the_loss_of_a_depth(data_dir):
    trainer = trainer_of(data_dir, depths="2,4")
    with metrics.aggregate("valid"):
        trainer.valid_step(sample(5))
    assert {"loss", "nll_loss_d2", "nll_loss_d4"} <= set(metrics.get_smoothed_values("valid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"depths": "2,4", "encoder_layerdrop": 0.1, "sharing": "none", "unique_layers": None},
            "--encoder-layerdrop 0.1",
        ),
        ({"depths": "2,4", "act": "both", "criterion": "label_smoothed_cross_entropy_with_ponder"}, "--act both"),
        ({"depths": "1,4"}, "--depths 1: leaves out parameter set 1 of the layer map 0,1,0,1; allowed: 2, 3, 4"),
        (
            {"depths": "2,4", "sharing": "sequence", "admin": "profile", "norm": "post"},
            "--admin profile cannot be combined with depth 2 of the encoder",
        ),
        ({"depths": "2,4", "deepnorm": True, "norm": "post"}, "--deepnorm True cannot be combined with several depths"),
        (
            {
                "depths": "2,4",
                "sharing": "none",
                "unique_layers": None,
                "component_sharing": "ffn=universal;self_attn=cycle:2",
            },
            "several depths of the encoder require one map of whole layers, but its components have the maps ",
        ),
        ({"depths": "2,4", "distributed_world_size": 2, "sharing_scope": "ffn"}, "--ddp-backend pytorch_ddp cannot be"),
    ],
)
def test_options_that_cannot_be_combined(options, message):
    options = {**CYCLE, "encoder_layers": 4, "decoder_layers": 4, **options}
    with pytest.raises(SharingError) as refused:
        build(options.pop("norm", "pre"), **options)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_schedule_is_refused(data_dir):
    words = ("--sharing-schedule=unshare", "--unshare-at=4")
    with pytest.raises(SharingError, match=r"^--depths cannot be combined with --sharing-schedule: "):
        make_trainer(data_dir, *words, **CYCLE, depths="2,4")


def test_options_in_a_configuration():
    train_block = {**vars(arguments("pre", **CYCLE)), "depths": [3, 6], "depth_sampling": "1,2", "task": "translation"}
    assert {"--depths", "3,6"} <= set(
        flags.words({k: v for k, v in train_block.items() if k != "arch"} | {"arch": "transformer_sharing"})
    )
