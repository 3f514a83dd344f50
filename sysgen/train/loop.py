"""The training loop: steps, evaluations, checkpoints and the log, resumable to the bit."""

import math
import time

import torch

from . import checkpoint
from .data import training_batches
from .evaluation import evaluate
from .interruption import Interrupted
from .steps import GraphStep, Step


class Diverged(RuntimeError):
    """The loss became infinite or NaN; the message is meant for the user."""


class Trainer:
    """All that changes during a run.

    Args:
        settings: as from :func:`sysgen.train.settings.resolve`.
        model, objective, optimizer, data: what is trained, how, with what and on what.
        output: folder of the checkpoints ``last.pt`` and ``best.pt``.
        log: :class:`sysgen.train.log.Log`.
        interruption: :class:`sysgen.train.interruption.Interruption`.
        checkpoint_every: steps between two checkpoints.
    """

    def __init__(
        self, settings, model, objective, optimizer, data, output, log, interruption, progress, device, checkpoint_every
    ):
        self.settings, self.model, self.objective, self.data = settings, model, objective, data
        self.output, self.log, self.interruption, self.progress = output, log, interruption, progress
        self.device, self.checkpoint_every = device, checkpoint_every
        self.optimizer = optimizer
        kind = GraphStep if settings["execution"] == "graph" else Step
        self.train_step = kind(model, objective, optimizer, settings, device)
        self.step = 0
        self.evaluated = 0  # step of the latest evaluation
        self.seconds = 0.0  # of all sessions of this run, evaluations included
        self.best = None  # {"step", "accuracy"} of the best out-of-distribution accuracy so far
        self.batches = None
        self._saved = None  # (step, evaluated) of the checkpoint on the disk

    # ---- state --------------------------------------------------------------------------------------------------

    def save(self):
        """Writes the checkpoint; Diverged if it would hold numbers that are not finite."""
        self._training_figures()
        self._check_parameters()
        checkpoint.save(
            self.output / "last.pt",
            {
                "settings": self.settings,
                "step": self.step,
                "evaluated": self.evaluated,
                "seconds": self._elapsed(),
                "best": self.best,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step_state": self.train_step.state_dict(),
                "sampler": self.batches.state,
                "rng": checkpoint.rng_state(self.device),
            },
        )
        self._saved = self.step, self.evaluated

    def restore(self, content):
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.train_step.load_state_dict(content["step_state"])
        self.step, self.evaluated = content["step"], content["evaluated"]
        self.seconds, self.best = content["seconds"], content["best"]
        self.batches = training_batches(self.data.train, self.settings, self.device, content["sampler"])
        self._saved = self.step, self.evaluated
        checkpoint.set_rng_state(content["rng"], self.device)  # last: nothing above may draw afterwards

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self):
        """Trains to the last step. Returns None, or the reason for which it stopped before, with a checkpoint."""
        if self.batches is None:
            self.batches = training_batches(self.data.train, self.settings, self.device)
        self._started, self._before = time.monotonic(), self.seconds
        first, last = self.step, self.settings["steps"]
        refresh = max(1, min(100, self.settings["eval_every"]))
        self.model.train()
        try:
            while True:
                if self._due(self.settings["eval_every"]) and self.evaluated != self.step:
                    self._evaluate(first)
                if self._due(self.checkpoint_every) and self._saved != (self.step, self.evaluated):
                    self.save()
                if self.step >= last:
                    return None
                self.interruption.check()
                self.train_step(next(self.batches).to(self.device, non_blocking=True), self.step)
                self.step += 1
                self.progress.advance()
                if self.step % refresh == 0:
                    self._status()
        except Interrupted as stop:
            self.save()
            return str(stop)
        finally:
            self.batches.close()
            self.seconds = self._elapsed()

    def _due(self, every):
        return self.step > 0 and (self.step % every == 0 or self.step >= self.settings["steps"])

    def _elapsed(self):
        return self._before + time.monotonic() - self._started

    def _training_figures(self):
        """Means over the training sequences since the last evaluation: waits for a GPU."""
        loss, right, count, wrong = self.train_step.totals.tolist()
        if not math.isfinite(loss):
            raise self._diverged("training loss")
        return {"loss": loss / count, "accuracy": right / count, "wrong": wrong / count} if count else None

    def _check_parameters(self):
        """Those after a step may be infinite although its loss was not."""
        if not all(torch.stack([p.isfinite().all() for p in self.model.parameters()]).tolist()):
            raise self._diverged("value of a parameter")

    def _diverged(self, what):
        holds = f"the checkpoint of step {self._saved[0]}" if self._saved else "no checkpoint"
        return Diverged(
            f"the {what} is no longer finite before step {self.step}; {self.output} holds {holds}. "
            "Try a smaller lr, a smaller clip or precision=fp32"
        )

    def _status(self):
        train = self._training_figures()
        if train is None:
            return
        shown = [f"loss {train['loss']:.4f}", f"train {train['accuracy']:.3f}"]
        self.progress.status("  ".join([*shown, *self._shown]))

    _shown = ()

    def _evaluate(self, first):
        train = self._training_figures()
        self._check_parameters()
        results = {
            name: evaluate(self.model, split, self.objective, self.settings, self.device, self.interruption)
            for name, split in self.data.group("validation").items()
        }
        self.train_step.totals.zero_()
        self.evaluated = self.step
        watched = results.get("ood", results["iid"])["accuracy"]
        # Of equally good ones the latest: (Csordás 2023, Ch. 5) reports the last checkpoint with the best accuracy.
        best = self.best is None or watched >= self.best["accuracy"]
        if best:
            self.best = {"step": self.step, "accuracy": watched}
            checkpoint.save(
                self.output / "best.pt", {"settings": self.settings, **self.best, "model": self.model.state_dict()}
            )
        elapsed = time.monotonic() - self._started
        self.log.write(
            "evaluation",
            step=self.step,
            train=train,
            validation=results,
            best=best,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=round(self._elapsed(), 3),
            steps_per_second=round((self.step - first) / elapsed, 3) if self.step > first else None,
        )
        self._shown = [f"{name} {result['accuracy']:.3f}" for name, result in results.items()]
        loss = f"loss {train['loss']:.4f}  train {train['accuracy']:.3f}  " if train else ""
        self.progress.line(f"step {self.step:6}  {loss}{'  '.join(self._shown)}{'  best' if best else ''}")
