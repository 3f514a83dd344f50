"""One training run from settings to result: ``sysgen.train.run``."""

import json
from pathlib import Path

import torch

from . import checkpoint
from .data import Data, num_samples
from .evaluation import evaluate
from .exclusive import exclusive
from .figures import save_figures
from .interruption import Interrupted, Interruption
from .log import Log, environment, finite, replace_text
from .loop import Diverged, Trainer
from .models import build, objective_for
from .optimizer import make_optimizer
from .progress import Progress
from .settings import SettingsError, differences, resolve


def run(
    task,
    model,
    *,
    output=None,
    device="cpu",
    resume=False,
    checkpoint_every=None,
    time_limit=None,
    figures=True,
    progress=False,
    interruption=None,
    **overrides,
):
    """Trains a preset on a task, evaluates it, and writes log, checkpoints, figures and result.

    Args:
        task: ``"ctl"``, ``"arithmetic"``, ``"listops"``, ``"ctlpp"``, ``"scan"``, ``"copy"``, ``"repeat_copy"``,
            ``"associative_recall"``, ``"key_value"``, ``"key_value_2way"``, ``"reversal"`` or ``"babi"``.
        model: name of a preset of the task (:data:`sysgen.train.PRESETS`).
        output: folder for the files of the run; by default ``runs/<task>-<model>-<seed>``. One run a folder.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ….
        resume: continue the run in ``output`` from its last checkpoint, if there is one. The settings must be those of
            the run, but ``steps`` may grow. The result is the same, to the bit, as without the interruption.
        checkpoint_every: steps between two checkpoints, ``eval_every`` if None. A killed run loses at most these.
        time_limit: seconds after which the run stops with a checkpoint.
        figures: also draw the curves and the attention and gate maps (needs matplotlib).
        progress: show the progress on stderr.
        interruption: an :class:`Interruption` whose ``request()`` stops the run with a checkpoint.
        **overrides: settings that replace those of the preset (:data:`sysgen.train.FIELDS`), ``seed``, ``data_seed``,
            ``pad_multiple``, ``execution`` (``"eager"``, ``"compile"``, ``"graph"``), and the options of the dataset.

    Returns:
        dict: what ``result.json`` holds: ``status`` (``"finished"``, or why it stopped), ``step``, ``settings``, and
        for a finished run ``test``: accuracies on the test splits of the last and the best checkpoint.

    Raises:
        SettingsError: a setting that is unknown or out of range, or a run in ``output`` that this one would overwrite
            or that is still at work.
        CheckpointError: a checkpoint that cannot be read or is of other settings.
        Diverged: the loss is infinite or NaN.
    """
    device = _device(device)
    settings = resolve(task, model, overrides, on_gpu=device.type == "cuda")
    settings["device"] = device.type  # a run cannot move: the generators of the two kinds differ
    if settings["execution"] == "graph" and device.type != "cuda":
        raise SettingsError(f"execution = 'graph' needs a CUDA device, got {device}")
    if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
        raise SettingsError(f"checkpoint_every must be a whole number of at least 1, got {checkpoint_every!r}")
    if time_limit is not None and not (isinstance(time_limit, (int, float)) and time_limit > 0):
        raise SettingsError(f"time_limit must be above 0 seconds, got {time_limit!r}")
    output = Path(output or f"runs/{task}-{settings['model']}-{settings['seed']}")
    _earlier(output, resume, settings)  # what it refuses is refused before data are made

    interruption = interruption or Interruption()
    interruption.limit(time_limit)
    data = Data(settings)
    for which in ("validation", "test"):
        data.group(which)  # what cannot be made is refused now and not after the training
    torch.manual_seed(settings["seed"])
    module = build(settings, data.train).to(device)
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        earlier = _earlier(output, resume, settings)  # another run may have ended meanwhile
        bar = Progress(settings["steps"], earlier["step"] if earlier else 0, progress)
        every = checkpoint_every or settings["eval_every"]
        return _run(output, settings, module, data, device, earlier, every, interruption, bar, figures)


def _run(output, settings, module, data, device, earlier, checkpoint_every, interruption, bar, figures):
    task = settings["task"]
    log = Log(output / "log.jsonl", continued=earlier)
    here = environment(device)
    parameters = sum(p.numel() for p in module.parameters())
    samples = num_samples(data.train)
    shown = "endless data" if samples is None else f"{samples:,} samples"
    bar.line(f"{task} {settings['model']}: {parameters:,} parameters, {shown}, {device}, {output}")
    trainer = Trainer(
        settings,
        module,
        objective_for(settings),
        make_optimizer(module, settings),
        data,
        output,
        log,
        interruption,
        bar,
        device,
        checkpoint_every,
    )
    if earlier:
        trainer.restore(earlier)
        log.write("resumed", step=trainer.step, environment=here, settings=settings)
    else:
        log.write("header", settings=settings, parameters=parameters, samples=samples, environment=here)
    try:
        stopped = trainer.run()
    except Diverged as error:
        log.write("diverged", step=trainer.step, message=str(error))
        raise
    finally:
        bar.close()

    result = {
        "status": stopped or "finished",
        "task": task,
        "model": settings["model"],
        "step": trainer.step,
        "settings": settings,
        "parameters": parameters,
        "seconds": round(trainer.seconds, 3),
        "steps_per_second": round(trainer.step / trainer.seconds, 3) if trainer.seconds else None,
        "best": trainer.best,
        "environment": here,
    }
    if not stopped:
        try:
            result["test"] = _test(trainer, data, settings, device, interruption)
        except Interrupted as stop:  # the checkpoint of the last step is written
            stopped = result["status"] = str(stop)
    if stopped:
        log.write("stopped", step=trainer.step, reason=stopped, seconds=result["seconds"])
        return result
    log.write("finished", step=trainer.step, seconds=result["seconds"], test=result["test"])
    replace_text(output / "result.json", json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
    if figures:
        result["figures"] = save_figures(output, settings, module, data, device, note=bar.line)
    return result


def _test(trainer, data, settings, device, interruption):
    """Accuracies of the last parameters and of the best checkpoint. Leaves the latter in the model."""

    def on_all():
        return {
            name: evaluate(trainer.model, split, trainer.objective, settings, device, interruption)
            for name, split in data.group("test").items()
        }

    last = {"step": trainer.step, **on_all()}
    if trainer.best["step"] == trainer.step:
        return {"last": last, "best": last}
    content = checkpoint.load(trainer.output / "best.pt")
    trainer.model.load_state_dict(content["model"])
    return {"last": last, "best": {"step": content["step"], **on_all()}}


def _device(name):
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be cpu or cuda, got {name!r}")
    return device


def _earlier(output, resume, settings):
    """The checkpoint to continue from, or None for a new run."""
    last = output / "last.pt"
    if output.exists() and not output.is_dir():
        raise SettingsError(f"output {output} is not a folder")
    if not last.exists():
        if not resume and (output / "log.jsonl").exists():
            raise SettingsError(f"{output} holds the log of a run without a checkpoint: choose another output folder")
        return None
    if not resume:
        raise SettingsError(f"{output} holds a run already: continue it with resume, or choose another output folder")
    content = checkpoint.load(last)
    different = differences(content["settings"], settings)
    if different:
        raise checkpoint.CheckpointError(
            f"{last} is of other settings, so it cannot be continued: {'; '.join(different)}"
        )
    return content
