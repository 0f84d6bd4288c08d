"""The criterion with a frozen teacher: values, gradients, normalization, logs, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.logging import metrics
from moeut_models import build_moeut
from sharing_cases import BY_NAME
from tiny_models import PAD, batch, build, make_trainer, save

from fairseq_sharing.checkpoints.files import load_checkpoint, save_atomically
from fairseq_sharing.distillation.word_level import LabelSmoothedCrossEntropyWithTeacher
from fairseq_sharing.errors import SharingError

ALPHA, TEMPERATURE, SMOOTHING = 0.3, 2.0, 0.1


def sample(seed: int = 3, keep: int = 3) -> dict:
    """Make a sample from some sentences of a batch."""
    inputs = {name: value[:keep] for name, value in batch(seed).items()}
    target = inputs["prev_output_tokens"].roll(-1, 1)
    counted = int((target != PAD).sum())
    return {"id": torch.arange(keep), "nsentences": keep, "ntokens": counted, "target": target, "net_input": inputs}


@pytest.fixture(scope="module")
def teacher(data_dir, tmp_path_factory) -> str:
    """The checkpoint of another model, with dropout."""
    trainer = make_trainer(data_dir, BY_NAME["sequence"], "pre", dropout=0.5)
    return str(save(trainer, tmp_path_factory.mktemp("teacher") / "teacher.pt"))


@pytest.fixture
def trainer(data_dir):
    return make_trainer(data_dir, BY_NAME["cycle"])


@pytest.fixture
def criterion(trainer, teacher):
    """Make the criterion; the arguments replace its defaults."""

    def make(sentence_avg: bool = False, **options) -> LabelSmoothedCrossEntropyWithTeacher:
        given = {"teacher": teacher, "kd_alpha": ALPHA, "kd_temperature": TEMPERATURE, **options}
        return LabelSmoothedCrossEntropyWithTeacher(trainer.task, sentence_avg, SMOOTHING, **given)

    return make


def by_hand(model, teacher_model, one, temperature: float = TEMPERATURE):
    """Compute the smoothed cross-entropy, and the divergence without its factors, word by word."""
    output = model(**one["net_input"])[0]
    with torch.no_grad():
        wanted = teacher_model(**one["net_input"])[0]
    size = output.size(-1)
    cross_entropy, divergence = 0.0, 0.0
    for row, t_row, words in zip(output, wanted, one["target"], strict=True):
        for scores, t_scores, word in zip(row, t_row, words.tolist(), strict=True):
            if word == PAD:
                continue
            log_p = scores - scores.logsumexp(0)
            each = SMOOTHING / (size - 1)
            weights = torch.full((size,), each)
            weights[word] = 1 - SMOOTHING
            cross_entropy = cross_entropy - (weights * log_p).sum()
            q = (t_scores / temperature).softmax(0)
            p = (scores / temperature).softmax(0)
            divergence = divergence + (q * (q / p).log()).sum()
    return cross_entropy, divergence


def test_loss_and_gradient_are_those_of_the_definition(trainer, criterion):
    made, one, model = criterion(), sample(), trainer.model.train()
    loss, size, logged = made(model, one)
    cross_entropy, divergence = by_hand(model, made.teacher.model, one)
    expected = (1 - ALPHA) * cross_entropy + ALPHA * TEMPERATURE**2 * divergence
    assert size == one["ntokens"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logged["loss"].item() == loss.item()
    assert logged["teacher_kl"].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert divergence > 1
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(one, parameters) for one in (loss, expected))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"fast": True}, {"admin": "profile"}, {"depth_signal": "learned"}],
    ids=lambda options: next(iter(options)),
)
def test_students_of_all_kinds_have_the_loss_of_the_definition(data_dir, criterion, options):
    model, one = make_trainer(data_dir, BY_NAME["cycle"], **options).model.train(), sample()
    model(**one["net_input"])  # Admin measures its weights in the first pass
    made = criterion()
    cross_entropy, divergence = by_hand(model, made.teacher.model, one)
    expected = (1 - ALPHA) * cross_entropy + ALPHA * TEMPERATURE**2 * divergence
    assert made(model, one)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_alpha_0_trains_exactly_like_the_cross_entropy(data_dir, teacher):
    states = []
    for kind, options in (
        (LabelSmoothedCrossEntropyCriterion, {}),
        (LabelSmoothedCrossEntropyWithTeacher, {"teacher": teacher, "kd_alpha": 0.0, "kd_temperature": TEMPERATURE}),
    ):
        trainer = make_trainer(data_dir, BY_NAME["cycle"], dropout=0.3)
        trainer._criterion = kind(trainer.task, False, SMOOTHING, **options)
        for seed in (3, 4):
            with metrics.aggregate():
                trainer.train_step([sample(seed)])
        states.append(dict(trainer.model.named_parameters()))
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient(trainer, criterion, tmp_path):
    path = str(save(trainer, tmp_path / "same.pt"))
    made = criterion(teacher=path, kd_alpha=1.0)
    loss, _, logged = made(trainer.model.train(), sample())
    loss.backward()
    assert logged["teacher_kl"].item() == pytest.approx(0, abs=1e-5)
    assert logged["nll_loss"] > 1
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in trainer.model.parameters())


def test_padding_does_not_change_the_loss(trainer, criterion):
    made, one = criterion(), sample()
    padded = copy.deepcopy(one)
    inputs, fill = padded["net_input"], torch.full((3, 4), PAD)
    padded["target"] = torch.cat([one["target"], fill], 1)
    inputs["prev_output_tokens"] = torch.cat([inputs["prev_output_tokens"], fill], 1)
    losses = [made(trainer.model.train(), given)[0].item() for given in (one, padded)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_an_update_of_two_unequal_steps_is_that_of_their_joint_batch(trainer, criterion, sentence_avg):
    made = trainer._criterion = criterion(sentence_avg)
    steps = [sample(3), sample(4, keep=1)]
    total, divergences = 0.0, 0.0
    for step in steps:
        cross_entropy, divergence = by_hand(trainer.model, made.teacher.model, step)
        total = total + (1 - ALPHA) * cross_entropy + ALPHA * TEMPERATURE**2 * divergence
        divergences += divergence.item()
    tokens, parameters = sum(step["ntokens"] for step in steps), list(trainer.model.parameters())
    size = sum(step["nsentences"] for step in steps) if sentence_avg else tokens
    expected = torch.autograd.grad(total / size, parameters)
    with metrics.aggregate() as logged:
        trainer.train_step(steps)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    assert logged.get_smoothed_values()["teacher_kl"] == pytest.approx(divergences / tokens / math.log(2), abs=2e-3)


def test_validation_loss_is_the_cross_entropy_with_the_divergence_beside_it(trainer, criterion):
    made, one = criterion(), sample()
    stock = LabelSmoothedCrossEntropyCriterion(trainer.task, False, SMOOTHING)
    model = trainer.model.eval()
    loss, _, logged = made(model, one)
    expected, _, stock_logged = stock(model, one)
    assert loss == expected
    assert logged["nll_loss"] == stock_logged["nll_loss"]
    assert logged["teacher_kl"].item() == pytest.approx(by_hand(model, made.teacher.model, one)[1].item(), rel=1e-5)


def test_the_teacher_is_frozen_and_in_no_checkpoint(trainer, criterion, teacher, tmp_path):
    made = trainer._criterion = criterion()
    before = {name: value.clone() for name, value in made.teacher.model.state_dict().items() if torch.is_tensor(value)}
    made.train()
    assert made.teacher.scores(sample()).equal(made.teacher.scores(sample())), "dropout is off"
    with metrics.aggregate():
        trainer.train_step([sample()])
    after = made.teacher.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.model.parameters())
    assert not list(made.parameters())
    assert not list(made.modules())[1:]
    saved = load_checkpoint(save(trainer, tmp_path / "student.pt"))
    assert not made.state_dict()
    assert saved["model"].keys() == trainer.model.state_dict().keys()


def test_both_distributions_are_computed_in_fp32_under_bf16(data_dir, criterion):
    made = criterion()
    model = make_trainer(data_dir, BY_NAME["cycle"], precision="bf16").model.train()
    exact = make_trainer(data_dir, BY_NAME["cycle"]).model.train()
    one = sample()
    output = model(**one["net_input"])
    assert output[0].dtype == torch.bfloat16
    found, wanted = made.divergence(model, output, one), made.divergence(exact, exact(**one["net_input"]), one)
    assert found.dtype == torch.float32
    assert 0 < (found.sum() - wanted.sum()).abs() < 0.02 * wanted.sum()
    with torch.autocast("cpu", torch.bfloat16):
        assert made.teacher.scores(one).dtype == torch.float32


def test_a_prefix_that_is_ignored_has_no_divergence(trainer, criterion):
    one = sample()
    divergences = [
        criterion(ignore_prefix_size=size).divergence(trainer.model, trainer.model(**one["net_input"]), one)
        for size in (0, 2)
    ]
    torch.testing.assert_close(divergences[1], divergences[0][:, 2:])


def test_losses_of_single_tokens_add_up(trainer, criterion):
    made, model = criterion(), trainer.model.train()
    each = made(model, sample(), reduce=False)[0]
    assert each.numel() == sample()["target"].numel()
    assert each.sum().item() == pytest.approx(made(model, sample())[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kd_alpha": 1.5}, r"^--kd-alpha must be between 0 and 1, got 1.5$"),
        ({"kd_alpha": math.nan}, r"^--kd-alpha must be between 0 and 1, got nan$"),
        ({"kd_temperature": 0.0}, r"^--kd-temperature must be a finite number above 0, got 0.0$"),
        ({"teacher": ""}, r"^--criterion label_smoothed_cross_entropy_with_teacher requires --teacher CHECKPOINT$"),
        ({"teacher": "none.pt"}, r"^--teacher none.pt: no such file; allowed: a checkpoint$"),
        ({"teacher_data": "none"}, r"^--teacher .*: none/dict.en.txt: no such file; give .* with --teacher-data$"),
    ],
    ids=str,
)
def test_bad_options_are_refused(criterion, options, message):
    with pytest.raises(SharingError, match=message):
        criterion(**options)


def test_a_teacher_with_the_same_symbols_in_another_order_is_refused(criterion, trainer, tmp_path):
    for language in ("en", "de"):
        other = Dictionary()
        for symbol in reversed(trainer.task.target_dictionary.symbols[other.nspecial :]):
            other.add_symbol(symbol)
        other.save(str(tmp_path / f"dict.{language}.txt"))
    with pytest.raises(SharingError, match=r"its source dictionary \(50 symbols\) differs from the student's \(50\)"):
        criterion(teacher_data=str(tmp_path))


def test_a_teacher_of_another_direction_or_task_is_refused(criterion, teacher, tmp_path):
    state = load_checkpoint(teacher)
    state["cfg"]["task"]["source_lang"], state["cfg"]["task"]["target_lang"] = "de", "en"
    save_atomically(state, tmp_path / "reverse.pt")
    with pytest.raises(SharingError, match=r"reverse.pt: translates de-en; allowed: en-de, as the student$"):
        criterion(teacher=str(tmp_path / "reverse.pt"))
    state["cfg"]["task"] = {"_name": "language_modeling", "data": "data"}
    save_atomically(state, tmp_path / "language.pt")
    with pytest.raises(SharingError, match="was trained for the task language_modeling; allowed: translation models"):
        criterion(teacher=str(tmp_path / "language.pt"))


def test_students_with_other_losses_are_refused(criterion):
    made = criterion()
    with pytest.raises(SharingError, match="does not balance the usage of experts; allowed: models without expert"):
        made(build_moeut(), sample())
    adaptive = build(share_all_embeddings=False, adaptive_softmax_cutoff=[10, 20])
    with pytest.raises(SharingError, match=r"cannot be combined with --adaptive-softmax-cutoff$"):
        made(adaptive, sample())
    with pytest.raises(SharingError, match="--criterion label_smoothed_cross_entropy_with_teacher has no ponder cost"):
        build(act="both", criterion="label_smoothed_cross_entropy_with_teacher", sharing="universal")
