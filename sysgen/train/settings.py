"""Settings of one run: a preset, what the caller overrides, and the checks."""

import difflib
import math
from typing import Any, Callable, NamedTuple, Optional

from .presets import PRESETS, TASKS


class SettingsError(ValueError):
    """A setting that does not exist or has a value that is not allowed; the message is meant for the user."""


class Field(NamedTuple):
    """One overridable setting: how to read it from text, what is allowed, and what it means."""

    parse: Callable[[str], Any]
    allowed: Callable[[Any], bool]
    condition: str
    help: str


def _flag(text):
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _count(help, least=1, most=None):
    """``most``: a number, or the name of one and the number."""
    if most is None:
        return Field(int, lambda v: _is_int(v) and v >= least, f"a whole number of at least {least}", help)
    name, limit = most if isinstance(most, tuple) else (str(most), most)
    return Field(int, lambda v: _is_int(v) and least <= v <= limit, f"a whole number from {least} to {name}", help)


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _rate(help):
    return Field(float, lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)", help)


def _number(help, least=0.0, exclusive=False):
    bound = f"a number {'above' if exclusive else 'of at least'} {least:g}"
    return Field(
        float,
        lambda v: _is_number(v) and (v > least if exclusive else v >= least) and v != float("inf"),
        bound,
        help,
    )


def _choice(help, *known):
    return Field(str, lambda v: v in known, f"one of {', '.join(known)}", help)


def _boolean(help):
    return Field(_flag, lambda v: isinstance(v, bool), "yes or no", help)


FIELDS = {
    # model
    "d_model": _count("width of the state"),
    "embedding_dim": _count("width of the token embedding of an RNN"),
    "hidden_size": _count("width of the controller, or of an LSTM"),
    "num_cells": _count("cells of the memory"),
    "word_size": _count("words of a cell"),
    "num_reads": _count("read heads of the DNC"),
    "num_heads": _count("pairs of a read and a write head of the NTM"),
    "masked": _boolean("masked content addressing of the DNC"),
    "dealloc": _boolean("de-allocation of the DNC"),
    "sharpen": _boolean("sharpened links of the DNC"),
    "mask_min": _rate("smallest value of a mask of the DNC"),
    "mask_bias": Field(
        float, lambda v: _is_number(v) and math.isfinite(v), "a finite number", "initial bias of the DNC's masks"
    ),
    "dim_feedforward": _count("width of the hidden layer of the feedforward network"),
    "nhead": _count("attention heads"),
    "num_layers": _count("layers (ACT: the most that are run)"),
    "num_eval_layers": _count("layers when evaluating, if not num_layers"),
    "dropout": _rate("dropout"),
    "attention_dropout": _rate("dropout of the attention, on the keys"),
    "feedforward_dropout": _rate("dropout within the feedforward networks, if not dropout"),
    "gate_dropout": _rate("rate at which whole columns of the gate are closed in training"),
    "gate_bias": Field(
        float, lambda v: _is_number(v) and math.isfinite(v), "a finite number", "initial bias of the gate"
    ),
    "released_readout": _boolean("read the states that the released RNNs read, see RNNClassifier"),
    "readout": _choice("the column that is read out", "first", "last"),
    "embedding_scale": _choice("embedding and position scheme of SCAN", "teu", "none", "ped"),
    "act": _choice("halting scheme: the last step is forced, or not", "graves", "universal"),
    "act_threshold": _rate("halting probability at which a column stops"),
    "act_loss_weight": _number("weight of the ponder loss"),
    # training
    "optimizer": _choice("optimiser", "adamw", "adam", "rmsprop"),
    "momentum": _rate("momentum of rmsprop"),
    "lr": _number("learning rate (Noam: its factor)", exclusive=True),
    "schedule": _choice("learning rate after the warm-up", "constant", "noam"),
    "warmup": _count("steps of linear warm-up", least=0),
    "weight_decay": _number("weight decay of all parameters (tasks of chapter 2: not of biases and embeddings)"),
    "clip": _number("largest norm of the gradient (tasks of chapter 2: of weights and of biases)", exclusive=True),
    "batch_size": _count("sequences a batch"),
    "bucketed": _boolean("batches of similar lengths"),
    "steps": _count("training steps"),
    "eval_every": _count("steps between two evaluations"),
    "eval_samples": _count("sequences of an evaluation on endless data"),
    "precision": _choice("fp32; amp: float16 with a loss scale; bf16: bfloat16", "fp32", "amp", "bf16"),
}

# Options of the datasets: what the values mean is theirs to check.
TASK_FIELDS = {
    "direction": _choice("order in which the functions of CTL and CTL++ are written", "forward", "backward"),
    "more_depth_valid": _count("CTL: validated on up to this much more depth than in training, tested beyond", most=4),
    "growth": _choice("how arithmetic trees grow", "reference", "balanced"),
    "num_train": _count("samples in the training data"),
    "num_eval": _count("samples in each other split"),
    "variant": _choice("split of CTL++", "A", "R", "S"),
    "overlap": _count("CTL++, variant S: functions that both groups share"),
    "symbol_overlap": _count("CTL++, variant S: symbols that are shared before each of these"),
    "cutoff": _count("longest output in the training set of SCAN"),
    "min_length": _count("fewest rows of a list, blocks or pairs"),
    "max_length": _count("most rows of a list, blocks or pairs in training"),
    "min_copies": _count("fewest lists to copy"),
    "max_copies": _count("most lists to copy in training"),
    "word_bits": _count("random bits of a word"),
    "block_words": _count("words of a block"),
    "data_dir": Field(str, lambda v: isinstance(v, str), "a folder", "where the files qa*_train.txt of bAbI are"),
    "think_steps": _count("bAbI: silent steps before an answer", least=0),
    "stories": _choice("bAbI: all, or without the last of each file as released", "all", "reference"),
}

_LARGEST_SEED = ("2^64 - 1", 2**64 - 1)
RUN_FIELDS = {
    "seed": _count("seed of the initial weights, the batches and dropout", least=0, most=_LARGEST_SEED),
    "data_seed": _count("seed of the dataset", least=0, most=_LARGEST_SEED),
    "pad_multiple": _count("batches are padded to a multiple of this length (default 1, with CUDA graphs 8)"),
}
RUN_DEFAULTS = {"seed": 0, "data_seed": 0, "pad_multiple": 1, "execution": "eager"}
GRAPH_PAD_MULTIPLE = 8  # each padded length is a graph of its own
EXECUTIONS = ("eager", "compile", "graph")

MAY_BE_NONE = ("num_eval_layers", "embedding_scale", "overlap", "symbol_overlap")

# A longer run goes through the same steps as a shorter one, so this may differ when a run is continued.
MAY_GROW = ("steps",)


def resolve(task: str, model: str, overrides: Optional[dict] = None, *, on_gpu: bool = False) -> dict:
    """The settings of a run: those of preset ``model`` of ``task``, with ``overrides``.

    Presets that were run under AMP take ``precision="amp"`` on a GPU and ``"fp32"`` on the CPU, unless overridden.

    Raises:
        SettingsError: an unknown task, model or setting, a setting that the model has not, or a value out of range.
    """
    overrides = dict(overrides or {})
    if task not in PRESETS:
        raise SettingsError(f"there is no task {task!r}; known: {', '.join(PRESETS)}{_closest(task, PRESETS)}")
    name = str(model).replace("_", "-")
    if name not in PRESETS[task]:
        known = PRESETS[task]
        raise SettingsError(f"task {task} has no preset {model!r}; known: {', '.join(known)}{_closest(name, known)}")
    preset = PRESETS[task][name]
    options = TASKS[task]["options"]
    settings = {"task": task, "model": name, **options, **preset, **RUN_DEFAULTS}
    if settings["precision"] == "amp" and not on_gpu:
        settings["precision"] = "fp32"
    if overrides.get("execution") == "graph":
        settings["pad_multiple"] = GRAPH_PAD_MULTIPLE
    for key, value in overrides.items():
        _override(settings, key, value, options)
    _check_together(settings)
    return settings


def _override(settings, key, value, options):
    known = {**FIELDS, **RUN_FIELDS, **{k: TASK_FIELDS[k] for k in options if k in TASK_FIELDS}}
    if key == "execution":
        if value not in EXECUTIONS:
            raise SettingsError(f"execution must be one of {', '.join(EXECUTIONS)}, got {value!r}")
    elif key not in known and key not in TASK_FIELDS:
        raise SettingsError(f"there is no setting {key!r}{_closest(key, known)}")
    elif key not in settings:
        what = f"task {settings['task']}" if key in TASK_FIELDS else f"preset {settings['model']!r}"
        raise SettingsError(f"{what} has no setting {key!r}, so {key} = {value!r} would change nothing")
    elif not known[key].allowed(value) and not (key in MAY_BE_NONE and value is None):
        raise SettingsError(f"{key} must be {known[key].condition}, got {value!r}")
    settings[key] = value


def _check_together(settings):
    if "nhead" in settings and settings["d_model"] % settings["nhead"]:
        raise SettingsError(f"d_model = {settings['d_model']} is no multiple of nhead = {settings['nhead']}")
    if settings.get("bidirectional") and settings["d_model"] % 2:
        raise SettingsError(f"d_model = {settings['d_model']} must be even: it is shared by two directions")
    if settings["schedule"] == "noam" and settings["warmup"] < 1:
        raise SettingsError("schedule = 'noam' needs warmup of at least 1 step, got 0")
    if settings.get("embedding_scale") is not None and settings["attention"] == "relative":
        raise SettingsError("embedding_scale is for absolute positions; a relative model has none to scale")
    if settings["execution"] == "graph" and settings["architecture"] != "encoder":
        raise SettingsError(f"execution = 'graph' is for encoders; preset {settings['model']!r} is none")


def _closest(name, known):
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def differences(old: dict, new: dict) -> list:
    """What stands in the way of continuing a run of settings ``old`` with ``new``: one line a setting."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after or (key in MAY_GROW and before is not None and after is not None and after > before):
            continue
        lines.append(f"{key}: the run has {before!r}, now {after!r} is asked for")
    return lines
