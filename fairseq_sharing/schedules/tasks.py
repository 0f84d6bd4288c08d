"""fairseq's tasks with a sharing schedule: ``--task translation_sharing`` and related tasks."""

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_sharing.errors import SharingError
from fairseq_sharing.models.hydra import as_namespace
from fairseq_sharing.models.shared_stack import SharingModel
from fairseq_sharing.schedules.build import build_schedule
from fairseq_sharing.schedules.engine import Engine
from fairseq_sharing.schedules.options import ScheduleOptions, check_training, read_options
from fairseq_sharing.schedules.training_loss import TrainingLoss


class SharingTask:
    """Mixin for a fairseq task that changes its model's layer maps by ``--sharing-schedule``."""

    engine = None

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model and, for training, its schedule.

        Raises:
            SharingError: if an option is invalid or cannot be combined with a schedule, or if the architecture does not
                support sharing.
        """
        model = super().build_model(cfg, from_checkpoint)  # completes a configuration of fairseq-hydra-train
        cfg = as_namespace(cfg)
        options = read_options(self._configuration, getattr(cfg, "seed", 1))
        if options.sharing_schedule and not from_checkpoint:
            check_training(cfg)
            self._train_subset = getattr(cfg, "train_subset", "train")
            if not isinstance(model, SharingModel):
                arch = getattr(cfg, "arch", type(model).__name__)
                raise SharingError(f"--sharing-schedule requires an architecture of this package, got --arch {arch}")
            self.engine = Engine(build_schedule(options, model.sharing), model, options)
            self._loss = TrainingLoss()
        return model

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """Build fairseq's iterator and keep a reference to that of the training set."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if self.engine is not None and dataset is self.datasets.get(self._train_subset):
            self._loss.batches = iterator
        return iterator

    @property
    def _configuration(self):
        # fairseq's older tasks, including language_modeling, store it in args.
        return self.args if self.cfg is None else self.cfg

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """Run the forward and backward pass of a batch under the schedule's engine."""
        if self.engine is None:
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        with self.engine.training_step(update_num):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def after_update(self, trainer) -> None:
        """Run the schedule. The trainer calls this after each update that was applied."""
        if self.engine is not None:
            self.engine.after_update(trainer, lambda draw: self._loss.measure(trainer, draw))

    def get_checkpoint_dict(self):
        """Return the task's state for the checkpoint."""
        return {} if self.engine is None else {type(self).__name__: self.engine.state_dict()}

    def set_checkpoint_dict(self, state):
        """Restore the task's state from a checkpoint."""
        if self.engine is not None:
            self.engine.load_state_dict(state)


@dataclass
class TranslationSharingConfig(ScheduleOptions, TranslationConfig):
    """Options of ``--task translation_sharing``."""


@register_task("translation_sharing", dataclass=TranslationSharingConfig)
class TranslationSharingTask(SharingTask, TranslationTask):
    """fairseq's translation task with a sharing schedule."""


@dataclass
class LanguageModelingSharingConfig(ScheduleOptions, LanguageModelingConfig):
    """Options of ``--task language_modeling_sharing``."""


@register_task("language_modeling_sharing", dataclass=LanguageModelingSharingConfig)
class LanguageModelingSharingTask(SharingTask, LanguageModelingTask):
    """fairseq's language modeling task with a sharing schedule."""


@dataclass
class MaskedLMSharingConfig(ScheduleOptions, MaskedLMConfig):
    """Options of ``--task masked_lm_sharing``."""


@register_task("masked_lm_sharing", dataclass=MaskedLMSharingConfig)
class MaskedLMSharingTask(SharingTask, MaskedLMTask):
    """fairseq's masked language modeling task with a sharing schedule."""
