"""Effects of a map change on training: memory, optimizer, checkpoints, mixed precision, data parallel."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from scheduled_training import LAYERS, TrainingBatches, changes, make_trainer, sample, train
from step_by_step import check_step_by_step
from tiny_models import EMBED, VOCABULARY, assert_equal_models, assert_same_translations, component_sizes, translate

from fairseq_sharing.checkpoints.averaging import average_checkpoints
from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.checkpoints.materialize import materialize
from fairseq_sharing.errors import SharingError
from fairseq_sharing.layer_map import num_unique
from fairseq_sharing.schedules.change_sharing import change_sharing, measure_bytes
from fairseq_sharing.schedules.replay import recorded_changes

RANDOM = ("--sharing-schedule=dynamic", "--dynamic-interval=2", "--dynamic-policy=random")
SPLIT = (
    *("--sharing-schedule=unshare", "--unshare-when=correlation-split", "--unshare-interval=2"),
    *("--unshare-patience=1", "--unshare-threshold=0.8"),
)


def make_run(data_dir, *words: str, **options):
    trainer = make_trainer(data_dir, *words, **options)
    trainer.task._loss.batches = TrainingBatches()
    return trainer


def closed_form(trainer) -> int:
    """Count the values of a pre-norm model: the embedding, M layers per stack and the final LayerNorms."""
    total = VOCABULARY * EMBED + 2 * 2 * EMBED
    for name, sharing in trainer.get_model().sharing.items():
        total += num_unique(sharing.layer_map) * sum(component_sizes(name).values())
    return total


def assert_optimizer_holds_the_model(trainer) -> None:
    """Check that the optimizer has each trainable parameter once, in model order, and no other state."""
    (group,) = trainer.optimizer.param_groups
    expected = [p for p in trainer.get_model().parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in expected]
    assert {id(p) for p in trainer.optimizer.optimizer.state} <= {id(p) for p in expected}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--sharing-schedule=unshare", "--unshare-at=2"), {"sharing": "cycle", "unique_layers": 2}),
        (SPLIT, {"sharing": "universal"}),
        (SPLIT, {"sharing": "universal", "fast": True}),
        ((*RANDOM, "--dynamic-initial=train"), {}),
    ],
)
def test_bytes_are_the_closed_form_before_and_after_every_change(words, options, data_dir):
    """fp32 weights and gradients, and Adam's two moments: 4, 4 and 8 bytes per value."""
    trainer = make_run(data_dir, *words, **options)
    for _ in range(8):
        values = closed_form(trainer)
        train(trainer, 1)
        assert_optimizer_holds_the_model(trainer)
        measured = measure_bytes(trainer.get_model(), trainer.optimizer)
        now = closed_form(trainer)
        assert (measured["weights"], measured["optimizer"]) == (4 * now, 8 * now)
        assert measured["gradients"] == 4 * min(values, now) or len(changes(trainer)) > 1
    assert changes(trainer)
    for change in changes(trainer)[:-1]:
        for moment in ("before", "after"):
            values = change[moment]["parameters"]
            assert change["bytes"][moment] == {"weights": 4 * values, "gradients": 4 * values, "optimizer": 8 * values}


def test_nothing_keeps_a_dropped_parameter_alive(data_dir):
    import gc
    import weakref

    trainer = make_run(data_dir, *RANDOM)
    trainer.task.engine._schedule._agents[0][1].act = lambda state, places, epsilon: ([0] * len(places), False)
    layer = trainer.get_model().encoder.layers[2]
    dropped = weakref.ref(layer.fc1.weight.untyped_storage())
    parameter = weakref.ref(layer.fc1.weight)
    train(trainer, 2)
    gc.collect()
    assert parameter() is None
    assert dropped() is None


def test_no_change_is_recorded_before_its_effect_is_measured(data_dir):
    trainer = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=2", sharing="universal")
    train(trainer, 2)
    (change,) = changes(trainer)
    assert set(change["bytes"]) == set(change["gradient_norm"]) == {"before"}
    train(trainer, 1)
    assert set(change["bytes"]) == set(change["gradient_norm"]) == {"before", "after"}
    assert change["before"]["encoder"]["layer_map"] == [0] * LAYERS
    assert change["after"]["encoder"]["layer_map"] == list(range(LAYERS))
    assert change["reason"] == "update 2 reached"


def checkpoint(trainer, path):
    """Save as fairseq-train does; return the path."""
    state = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 1, "version": 2}}
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {**state, **trainer.task.get_checkpoint_dict()})
    return path


def resume(path, trainer):
    """Load as fairseq-train does."""
    extra = trainer.load_checkpoint(str(path))
    trainer.task.set_checkpoint_dict(extra[type(trainer.task).__name__])
    return trainer


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (SPLIT, {"sharing": "universal"}),
        (SPLIT, {"sharing": "universal", "fast": True}),
        (("--sharing-schedule=dynamic", "--dynamic-interval=2", "--dynamic-epsilon-decay=0.5"), {}),
        ((*RANDOM, "--tied-gradients=root", "--dynamic-reward-when=immediate", "--dynamic-agent=separate"), {}),
    ],
)
def test_going_on_from_any_update_gives_the_same_bits(words, options, data_dir, tmp_path):
    """Resume during the initial freezing, between a decision and its reward, and right after a change."""
    trainer = make_run(data_dir, *words, **options)
    saved = []
    for update in range(1, 8):
        train(trainer, 1)
        saved.append(checkpoint(trainer, tmp_path / f"{update}.pt"))
    assert changes(trainer)
    train(trainer, 2)
    expected = trainer.task.engine.state_dict()
    for update in (1, 3, 4):
        resumed = resume(saved[update - 1], make_run(data_dir, *words, seed=9, **options))
        train(resumed, 9 - update)
        assert_equal_models(trainer.get_model(), resumed.get_model())
        for one, other in zip(trainer.optimizer.params, resumed.optimizer.params, strict=True):
            states = [t.optimizer.optimizer.state[p] for t, p in ((trainer, one), (resumed, other))]
            assert states[0]["step"] == states[1]["step"]
            assert all(torch.equal(states[0][key], states[1][key]) for key in ("exp_avg", "exp_avg_sq"))
        got = resumed.task.engine.state_dict()
        assert repr(got) == repr(expected), f"from update {update}"


def test_a_checkpoint_says_its_phase(data_dir, tmp_path):
    trainer = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=2", sharing="universal")
    phases = []
    for update in (1, 2):
        train(trainer, 1)
        state = torch.load(checkpoint(trainer, tmp_path / f"{update}.pt"), weights_only=True)
        phases.append(state["extra_state"]["TranslationSharingTask"]["schedule"]["phase"])
    assert phases == ["shared", "unshared"]
    assert state["model"]["_extra_state"]["map_changed_by"] == "unshare at update 2"
    assert len(recorded_changes(state)) == 1


def test_a_run_resumes_only_with_its_own_options(data_dir, tmp_path):
    trainer = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=2", sharing="universal")
    train(trainer, 1)
    path = checkpoint(trainer, tmp_path / "1.pt")
    other = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=3", sharing="universal")
    with pytest.raises(SharingError, match="--unshare-at is 3, but the checkpoint was trained with 2"):
        resume(path, other)


def test_a_changed_map_without_its_schedule_s_state_is_refused(data_dir, tmp_path):
    """Load as fairseq does with --reset-dataloader."""
    words = ("--sharing-schedule=unshare", "--unshare-at=1")
    trainer = make_run(data_dir, *words, sharing="universal")
    train(trainer, 1)
    path = checkpoint(trainer, tmp_path / "1.pt")
    other = make_run(data_dir, *words, sharing="universal")
    other.load_checkpoint(str(path))
    with pytest.raises(SharingError, match=r"changed by unshare at update 1, but .* not loaded"):
        other.task.train_step(sample(1), other.get_model(), other.criterion, other.optimizer, 1)


def test_replay_makes_the_same_run(data_dir, tmp_path):
    trainer = make_run(data_dir, *RANDOM)
    train(trainer, 9)
    path = checkpoint(trainer, tmp_path / "last.pt")
    replayed = make_run(data_dir, "--sharing-schedule=replay", f"--replay-of={path}")
    train(replayed, 9)
    assert_equal_models(trainer.get_model(), replayed.get_model())
    assert [c["after"] for c in changes(trainer)] == [c["after"] for c in changes(replayed)]
    with pytest.raises(SharingError, match="started with the layer map 0,1,2,3, got 0,0,0,0"):
        make_run(data_dir, "--sharing-schedule=replay", f"--replay-of={path}", sharing="universal")


@pytest.mark.parametrize("efficient", [False, True])
def test_half_precision_optimizers_follow_the_map(efficient, data_dir):
    """Master weights, moments and order are correct; a step updates tied layers together."""
    trainer = make_trainer(data_dir, "--sharing-schedule=unshare", "--unshare-at=99", sharing="universal")
    model = trainer.get_model().bfloat16()
    cfg = copy.deepcopy(trainer.cfg)
    cfg.common.bf16 = True
    params = list(model.parameters())
    kind = MemoryEfficientFP16Optimizer if efficient else FP16Optimizer
    optimizer = kind.build_optimizer(cfg, params)

    def step():
        optimizer.zero_grad()
        for number, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, 0.01 * (number + 1))
        optimizer._needs_sync = True
        optimizer.multiply_grads(1.0)
        optimizer.clip_grad_norm(0.0)
        optimizer.step()

    step()
    reference = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    for labels in ((0, 1, 0, 1), (0, 1, 2, 3), (0, 0, 0, 0)):
        sharing = {n: (type(s)(labels, s.scope), ()) for n, s in model.sharing.items()}
        change_sharing(model, sharing, optimizer, model)
        expected = list(model.parameters())
        inner = optimizer.optimizer
        held = expected if efficient else optimizer.fp32_params
        assert [id(p) for p in inner.param_groups[0]["params"]] == [id(p) for p in held]
        assert {id(p) for p in inner.state} == {id(p) for p in held}, "moments of exactly these parameters"
        if not efficient:
            assert [id(p) for p in optimizer.fp16_params] == [id(p) for p in expected]
            assert all(torch.equal(m.bfloat16(), p) for m, p in zip(held, expected, strict=True))
            assert len({m.data_ptr() for m in held}) == len(held)
        for master, p in zip(held, expected, strict=True):
            assert inner.state[master]["exp_avg"].shape == p.shape
        if labels == (0, 1, 0, 1):
            now = dict(model.named_parameters(remove_duplicate=False))
            assert all(torch.equal(now[name], value) for name, value in before.items())
        step()
    names = dict(reference.named_parameters())
    assert all(not torch.equal(p, names[name]) for name, p in model.named_parameters())
    assert measure_bytes(model, optimizer)["weights"] == 2 * sum(p.numel() for p in model.parameters())


def test_data_parallel_wrapper_lists_what_the_model_owns(data_dir):
    """One process is enough: the wrapper reduces only the parameters that it lists."""
    trainer = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=2", sharing="universal")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapper = LegacyDistributedDataParallel(trainer.get_model(), torch.distributed.group.WORLD)
        trainer._wrapped_model = ModuleProxyWrapper(wrapper)
        buffers = []
        for update in range(1, 4):
            train(trainer, 1)
            listed = [id(p) for params in wrapper.per_device_params for p in params]
            assert listed == [id(p) for p in trainer.get_model().parameters()], f"update {update}"
            buffers.append(wrapper.buffer_size)
        assert buffers[0] < buffers[1] == closed_form(trainer)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fp16",), "--fp16 cannot be combined with --sharing-schedule: .* --fp16-no-flatten-grads"),
        (("--optimizer=adagrad",), "--optimizer adagrad .* allowed: adadelta, adafactor, adam"),
        (("--zero-sharding=os",), "--zero-sharding os"),
        (("--store-ema",), "--store-ema"),
        (("--checkpoint-activations",), "--checkpoint-activations"),
        (("--encoder-layerdrop=0.1",), "--encoder-layerdrop"),
        (("--use-bmuf",), "--use-bmuf"),
        (("--distributed-world-size=2", "--ddp-backend=c10d"), "--ddp-backend c10d .* --ddp-backend legacy_ddp"),
        (("--ddp-backend=fully_sharded",), "--ddp-backend fully_sharded"),
        (("--unshare-at=3",), "--unshare-at requires --sharing-schedule unshare"),
        (("--replay-of=x.pt",), "--replay-of requires --sharing-schedule replay"),
        (("--unshare-patience=5",), "--unshare-patience requires --sharing-schedule unshare, got dynamic"),
    ],
)
def test_what_cannot_follow_the_map_is_refused_by_name(words, message, data_dir):
    with pytest.raises(SharingError, match=message) as error:
        make_trainer(data_dir, "--sharing-schedule=dynamic", *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (("--sharing-schedule=unshare",), {"sharing": "universal"}, "either --unshare-at or --unshare-when"),
        (("--sharing-schedule=unshare", "--unshare-at=2"), {}, "no layers are shared"),
        (
            ("--sharing-schedule=dynamic",),
            {"sharing": "universal"},
            "has the layer map 0,0,0,0; allowed: --sharing none",
        ),
        (("--sharing-schedule=sometimes",), {}, "must be one of unshare, dynamic, replay, got sometimes"),
        (("--tied-gradients=mean",), {}, "--tied-gradients mean requires --sharing-schedule"),
        (("--sharing-schedule=unshare", "--unshare-at=2"), {"arch": "transformer"}, "got --arch transformer"),
    ],
)
def test_options_that_make_no_schedule_are_refused(words, options, message, data_dir):
    with pytest.raises(SharingError, match=message):
        make_trainer(data_dir, *words, **options)


def test_a_task_without_a_schedule_is_fairseq_s_own(data_dir):
    trainer = make_trainer(data_dir, sharing="universal")
    train(trainer, 2)
    assert trainer.task.engine is None
    assert trainer.task.get_checkpoint_dict() == {}


def test_loading_to_translate_makes_no_schedule(data_dir, tmp_path):
    """The map is that of the checkpoint, with all training options."""
    trainer = make_run(data_dir, *RANDOM)
    train(trainer, 5)
    path = checkpoint(trainer, tmp_path / "last.pt")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data_dir)})
    assert_equal_models(trainer.get_model(), model)
    assert task.engine is None


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_decoding_and_materializing_after_changes(fast, data_dir, tmp_path):
    """Step-by-step decoding equals the full pass, and fairseq's own transformer gives the same translations."""
    trainer = make_run(data_dir, *RANDOM, "--dynamic-interval=1", fast=fast)
    train(trainer, 6)
    assert len({tuple(c["after"]["decoder"]["layer_map"]) for c in changes(trainer)}) > 2, "ties and unties"
    model = trainer.get_model().eval()
    assert model.sharing["decoder"].shares
    check_step_by_step(model)
    path = checkpoint(trainer, tmp_path / "last.pt")
    save_atomically(materialize(load_checkpoint(path)), tmp_path / "plain.pt")
    (plain,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "plain.pt")], {"data": str(data_dir)}, task=trainer.task
    )
    assert type(plain).__name__ == "TransformerModel"
    assert_same_translations(translate([model]), translate([plain.eval()]))
    layers = {tuple(p.sum().item() for p in layer.parameters()) for layer in plain.decoder.layers}
    assert len(layers) == num_unique(model.sharing["decoder"].layer_map), "as many sets as the log says"


@pytest.mark.parametrize(
    ("order", "common"), [((2, 3, 4, 6), (0, 0, 1, 2)), ((6, 2, 4, 3), (0, 0, 1, 2)), ((3, 4), (0, 0, 1, 1))]
)
def test_average_over_changes_ties_what_is_tied_throughout(order, common, data_dir, tmp_path):
    trainer = make_run(data_dir, *RANDOM, "--dynamic-interval=1")
    vectors = iter([(0, 0, 0), (0, 0, 2), (0, 0, 2), (0, 2, 2), (0, 0, 0), (0, 1, 3)])
    agent = trainer.task.engine._schedule._agents[0][1]
    agent.act = lambda state, places, epsilon: ([*next(vectors)] * 2, False)
    models = {}
    for update in range(1, 7):
        train(trainer, 1)
        checkpoint(trainer, tmp_path / f"{update}.pt")
        models[update] = copy.deepcopy(dict(trainer.get_model().named_parameters(remove_duplicate=False)))
    average_checkpoints([tmp_path / f"{update}.pt" for update in order], tmp_path / "average.pt")
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "average.pt")], {"data": str(data_dir)}
    )
    assert model.sharing["encoder"].layer_map == common
    for name, parameter in model.named_parameters(remove_duplicate=False):
        mean = torch.stack([models[update][name].detach().double() for update in order]).mean(0)
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=0, atol=1e-6, msg=name)


def test_idle_parameters_left_in_the_optimizer_would_change_nothing(data_dir):
    """Dropped parameters get no gradient: the active weights are bitwise equal whether or not they stay listed."""
    trainers = [make_run(data_dir, *RANDOM, "--dynamic-initial=train", "--weight-decay=0.1") for _ in range(2)]
    train(trainers[0], 3)
    train(trainers[1], 1)
    kept = list(trainers[1].optimizer.optimizer.state.items())
    train(trainers[1], 1)
    listed = trainers[1].optimizer.optimizer
    active = {id(p) for p in listed.param_groups[0]["params"]}
    idle = [(p, state) for p, state in kept if id(p) not in active]
    assert idle
    for parameter, state in idle:
        listed.state[parameter] = state
        listed.param_groups[0]["params"].append(parameter)
        parameter.grad = None
    train(trainers[1], 1)
    assert_equal_models(*(trainer.get_model() for trainer in trainers))


def test_overflowed_updates_are_not_looked_at(data_dir):
    trainer = make_run(data_dir, "--sharing-schedule=unshare", "--unshare-at=1", sharing="universal")
    trainer.task.after_update(SimpleNamespace(get_num_updates=lambda: 0))
    assert changes(trainer) == []
    stock = trainer.optimizer.clip_grad_norm
    trainer.optimizer.clip_grad_norm = lambda *_, **__: (_ for _ in ()).throw(OverflowError("loss scale"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cuda", lambda self: self)
        train(trainer, 1)
    assert changes(trainer) == []
    trainer.optimizer.clip_grad_norm = stock
    train(trainer, 1)
    assert len(changes(trainer)) == 1
