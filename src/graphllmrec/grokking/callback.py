"""The grokking detector as a callback of the Hugging Face Trainer.

trainer = Trainer(..., callbacks=[GrokkingCallback()])
trainer.train()
trainer.callback_handler.callbacks[-1].events
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from graphllmrec.grokking.detector import Event, GrokkingDetector


class GrokkingCallback(TrainerCallback):
    """Updates a detector at every evaluation, with the training loss that was logged last.

    Evaluations before the first logged training loss are skipped, so log at least as often as you evaluate.
    """

    def __init__(
        self,
        detector: GrokkingDetector | None = None,
        *,
        metrics: Sequence[str] = (),
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        """`metrics`: names from `compute_metrics` to use beside the loss. Higher is better; the range is 0..1 unless
        the detector has a scale for the name. `on_event`: called with every event, e.g. `print`.
        """
        self.detector = detector or GrokkingDetector()
        self.metrics, self.on_event = tuple(metrics), on_event
        self.events: list[Event] = []
        self._train: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the training loss for the next evaluation."""
        if logs and "loss" in logs:
            self._train = {"loss": float(logs["loss"])}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Update the detector. Raises KeyError for a metric that the evaluation does not return."""
        if not metrics or not self._train:
            return
        valid = {"loss": float(metrics["eval_loss"])} | {name: float(metrics[f"eval_{name}"]) for name in self.metrics}
        for event in self.detector.update(state.global_step, train=self._train, valid=valid):
            self.events.append(event)
            if self.on_event is not None:
                self.on_event(event)
