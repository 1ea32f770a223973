"""The grokking detector beside a Hugging Face Trainer.

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
    """Shows every evaluation to a detector, beside the training loss that was logged last.

    Evaluations before the first training loss was logged are passed over, so log at least as often as you evaluate.
    """

    def __init__(
        self,
        detector: GrokkingDetector | None = None,
        *,
        metrics: Sequence[str] = (),
        tell: Callable[[Event], object] | None = None,
    ) -> None:
        """`metrics`: names from `compute_metrics` that count beside the loss; higher is better, 0..1 unless the
        detector has a scale for them. `tell`: called with every event, e.g. `print`.
        """
        self.detector = detector or GrokkingDetector()
        self.metrics, self.tell = tuple(metrics), tell
        self.events: list[Event] = []
        self._train: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Remember the training loss."""
        if logs and "loss" in logs:
            self._train = {"loss": float(logs["loss"])}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Show the evaluation to the detector. Raises KeyError for a metric that there is not."""
        if not metrics or not self._train:
            return
        valid = {"loss": float(metrics["eval_loss"])} | {name: float(metrics[f"eval_{name}"]) for name in self.metrics}
        for event in self.detector.update(state.global_step, train=self._train, valid=valid):
            self.events.append(event)
            if self.tell is not None:
                self.tell(event)
