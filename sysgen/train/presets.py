"""Released settings of the experiments: data only.

Sources: (Csordás 2023, Tables 5.1, 5.3, 5.4, 6.1 and C, D, E) as corrected by the released code where the text differs:
the gated softmax models have d_ff = 4·d_model, the bidirectional LSTMs have the stated size in total, the CTL++
Transformer is the relative one with d_ff = 256, and SCAN uses batches of 256 with a learning rate of 10⁻³.
"""

# Splits of a task that are trained on, watched during training and reported at the end, and the dataset's options.
# The checkpoint with the best accuracy on the validation split "ood" is kept.
TASKS = {
    "ctl": {
        "dataset": "CTL",
        "options": {"direction": "forward", "more_depth_valid": 3},
        "train": "train",
        "validation": {"iid": "iid_valid", "ood": "valid"},
        "test": {"iid": "iid_test", "ood": "test", "new_composition": "new_composition"},
    },
    "arithmetic": {
        "dataset": "SimpleArithmetic",
        "options": {"growth": "reference", "num_train": 100_000, "num_eval": 1000},
        "train": "train",
        "validation": {"iid": "iid", "ood": "valid"},
        "test": {"iid": "iid", "ood": "test"},
    },
    "listops": {
        "dataset": "ListOps",
        "options": {"num_train": 1_000_000, "num_eval": 1000},
        "train": "train",
        "validation": {"iid": "iid", "ood": "valid"},
        "test": {"iid": "iid", "ood": "test"},
    },
    "ctlpp": {
        "dataset": "CTLPlusPlus",
        "options": {
            "variant": "R",
            "direction": "backward",
            "num_train": 300_000,
            "num_eval": 1000,
            "overlap": None,
            "symbol_overlap": None,
        },
        "train": "train",
        "validation": {"iid": "iid", "ood": "ood"},
        "test": {"iid": "iid", "ood": "ood"},
    },
    "scan": {
        "dataset": "SCAN",
        "options": {"cutoff": 26},
        "train": "train",
        "validation": {"iid": "iid", "ood": "test"},
        "test": {"iid": "iid", "ood": "test"},
    },
}

# Endless data. The sizes are those of the thesis; the released key_value has words of 6 bits.
_STREAM = {
    "train": "train",
    "validation": {"iid": "valid", "ood": "longer_valid"},
    "test": {"iid": "test", "ood": "longer_test"},
}
_NOT_LONGER = {**_STREAM, "validation": {"iid": "valid"}, "test": {"iid": "test"}}
_PAIRS = {**_NOT_LONGER, "dataset": "KeyValue", "options": {"min_length": 2, "max_length": 16, "word_bits": 8}}
TASKS |= {
    "copy": {**_STREAM, "dataset": "Copy", "options": {"min_length": 1, "max_length": 8, "word_bits": 8}},
    "repeat_copy": {
        **_STREAM,
        "dataset": "RepeatedCopy",
        "options": {"min_length": 1, "max_length": 8, "min_copies": 2, "max_copies": 14, "word_bits": 8},
    },
    "associative_recall": {
        **_STREAM,
        "dataset": "AssociativeRecall",
        "options": {"min_length": 2, "max_length": 16, "block_words": 3, "word_bits": 8},
    },
    "key_value": _PAIRS,
    "key_value_2way": {**_PAIRS, "fixed": {"two_way": True}},
    "reversal": {**_STREAM, "dataset": "Reversal", "options": {"min_length": 1, "max_length": 10, "word_bits": 8}},
    "babi": {
        "dataset": "BAbI",
        "options": {"data_dir": "tasks_1-20_v1-2/en-10k", "think_steps": 3, "stories": "all"},
        "seeded": False,
        "train": "train",
        "validation": {"iid": "test"},
        "test": {"iid": "test"},
    },
}

# Every preset starts from this.
DEFAULTS = {
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "bucketed": False,
    "precision": "fp32",
    "dropout": 0.0,
    "eval_every": 1000,
}

_RNN = {"architecture": "rnn", "num_layers": 1, "bidirectional": False, "released_readout": False}
_ENCODER = {
    "architecture": "encoder",
    "layer": "post_norm",
    "attention": "softmax",
    "attention_dropout": 0.0,  # the released softmax attention has none, whatever its settings say
    "num_eval_layers": None,
    "embedding": {"positions": True, "dropout": 0.1},
}
# Released: absolute baselines always start from N(0, 1), the others as their sweep says.
_NO_POSITIONS = {"embedding": {"positions": False}}
_KAIMING = {"embedding": {"positions": False, "init": "kaiming"}}
_GATED = {**_ENCODER, **_NO_POSITIONS, "layer": "ndr", "gate_dropout": 0.0, "gate_bias": -3.0, "activation": "relu"}
_NDR = {**_GATED, "attention": "geometric", "update": "norm", "precision": "amp", "bucketed": True}
_RESIDUAL_GATED = {**_GATED, "attention": "relative", "update": "tanh", "precision": "amp"}

# ---- CTL, Table 5.1 -------------------------------------------------------------------------------------------------

_CTL_LSTM = {
    **_RNN,
    "embedding_dim": 16,
    "d_model": 200,
    "dropout": 0.5,
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 256,
    "clip": 5.0,
    "steps": 20_000,
}
# The released baseline has the DNC's de-allocation and sharpness, no masks, and words as wide as the controller.
_CTL_DNC = {name: value for name, value in _CTL_LSTM.items() if name not in ("num_layers", "bidirectional")}
_CTL_DNC |= {"architecture": "dnc", "num_cells": 21, "num_reads": 4, "masked": False, "dealloc": True, "sharpen": True}
_CTL_TRANSFORMER = {
    **_ENCODER,
    "d_model": 128,
    "dim_feedforward": 256,
    "nhead": 4,
    "num_layers": 11,
    "dropout": 0.1,
    "more_depth_valid": 2,  # so the baselines without a gate are tested on depths 8 to 10
    "readout": "last",
    "lr": 1.5e-4,
    "weight_decay": 0.0025,
    "batch_size": 512,
    "clip": 5.0,
    "steps": 30_000,
}
_CTL_GATED = {
    **_RESIDUAL_GATED,
    "d_model": 256,
    "dim_feedforward": 1024,
    "nhead": 1,
    "num_layers": 14,
    "dropout": 0.5,
    "attention_dropout": 0.1,
    "readout": "last",
    "lr": 2e-4,
    "weight_decay": 0.01,
    "batch_size": 512,
    "clip": 5.0,
    "steps": 30_000,
}
_CTL_NDR = {
    **_CTL_GATED,
    **_NDR,
    "dim_feedforward": 512,
    "attention_dropout": 0.1,
    "gate_dropout": 0.1,
    "lr": 1.5e-4,
}
# Adaptive computation time: (Csordás 2023, App. D)
_CTL_ACT = {
    **_CTL_TRANSFORMER,
    "num_layers": 14,
    "more_depth_valid": 3,
    "steps": 60_000,
    "act": "graves",
    "act_threshold": 0.99,
    "act_loss_weight": 0.03,
}
CTL = {
    "lstm": _CTL_LSTM,
    "bi-lstm": {**_CTL_LSTM, "bidirectional": True},
    "dnc": _CTL_DNC,
    "transformer": _CTL_TRANSFORMER,
    "transformer-rel": {**_CTL_TRANSFORMER, **_KAIMING, "attention": "relative"},
    "transformer-rel-gate": _CTL_GATED,
    "transformer-abs-rel-gate": {**_CTL_GATED, "attention": "abs_rel"},
    "transformer-geom": {**_CTL_TRANSFORMER, **_KAIMING, "attention": "geometric"},
    "ndr": _CTL_NDR,
    "act-transformer": _CTL_ACT,
    "act-transformer-rel": {**_CTL_ACT, **_KAIMING, "attention": "relative"},
    "act-transformer-geom": {**_CTL_ACT, **_KAIMING, "attention": "geometric"},
}

# ---- Simple arithmetic, Table 5.3 -----------------------------------------------------------------------------------

_ARITHMETIC_LSTM = {**_CTL_LSTM, "embedding_dim": 200, "num_layers": 2, "steps": 200_000}
_ARITHMETIC_TRANSFORMER = {
    **{k: v for k, v in _CTL_TRANSFORMER.items() if k != "more_depth_valid"},
    "dropout": 0.5,
    "readout": "first",
    "bucketed": True,
    "clip": 1.0,
    "steps": 200_000,
    "precision": "amp",
}
_ARITHMETIC_NDR = {
    **_CTL_NDR,
    "dim_feedforward": 1024,
    "nhead": 4,
    "num_layers": 15,
    "clip": 1.0,
    "steps": 100_000,
}
ARITHMETIC = {
    "lstm": _ARITHMETIC_LSTM,
    "bi-lstm": {**_ARITHMETIC_LSTM, "bidirectional": True},
    "transformer": _ARITHMETIC_TRANSFORMER,
    "transformer-rel": {
        **_ARITHMETIC_TRANSFORMER,
        **_KAIMING,
        "attention": "relative",
        "attention_dropout": 0.1,
    },
    "transformer-abs-rel-gate": {**_ARITHMETIC_NDR, "attention": "abs_rel", "update": "tanh"},
    "ndr": _ARITHMETIC_NDR,
}

# ---- ListOps, Table 5.4 ---------------------------------------------------------------------------------------------

_LISTOPS_LSTM = {
    **_RNN,
    "embedding_dim": 512,
    "d_model": 512,
    "num_layers": 4,
    "dropout": 0.1,
    "lr": 1e-3,
    "weight_decay": 0.08,
    "batch_size": 512,
    "bucketed": True,
    "precision": "amp",
    "clip": 1.0,
    "steps": 200_000,
}
_LISTOPS_TRANSFORMER = {
    **_ENCODER,
    "d_model": 256,
    "dim_feedforward": 1024,
    "nhead": 16,
    "num_layers": 6,
    "dropout": 0.015,
    "readout": "first",
    "lr": 4e-4,
    "weight_decay": 0.05,
    "batch_size": 512,
    "bucketed": True,
    "precision": "amp",
    "clip": 1.0,
    "steps": 200_000,
}
_LISTOPS_NDR = {
    **_NDR,
    "d_model": 512,
    "dim_feedforward": 1024,
    "nhead": 16,
    "num_layers": 20,
    "num_eval_layers": 24,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "gate_dropout": 0.05,
    "readout": "first",
    "lr": 2e-4,
    "weight_decay": 0.09,
    "batch_size": 512,
    "clip": 1.0,
    "steps": 100_000,
}
LISTOPS = {
    "lstm": _LISTOPS_LSTM,
    "bi-lstm": {**_LISTOPS_LSTM, "bidirectional": True},
    "transformer": _LISTOPS_TRANSFORMER,
    "transformer-rel": {
        **_LISTOPS_TRANSFORMER,
        **_NO_POSITIONS,
        "attention": "relative",
        "attention_dropout": 0.05,
    },
    "transformer-abs-rel-gate": {
        **_LISTOPS_NDR,
        "attention": "abs_rel",
        "update": "tanh",
        "dim_feedforward": 2048,
        "num_eval_layers": None,
    },
    "ndr": _LISTOPS_NDR,
}

# ---- CTL++, Table 6.1 -----------------------------------------------------------------------------------------------

_CTLPP = {"lr": 1.5e-4, "warmup": 500, "batch_size": 512, "bucketed": True, "precision": "amp"}
CTLPP = {
    "bi-lstm": {
        **_RNN,
        **_CTLPP,
        "bidirectional": True,
        "embedding_dim": 256,
        "d_model": 256,
        "dropout": 0.5,
        "clip": 5.0,
        "steps": 80_000,
    },
    "transformer": {
        **_ENCODER,
        **_CTLPP,
        **_KAIMING,
        "attention": "relative",
        "d_model": 128,
        "dim_feedforward": 256,
        "nhead": 4,
        "num_layers": 8,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "readout": "first",
        "weight_decay": 0.0025,
        "clip": 5.0,
        "steps": 300_000,
    },
    "ndr": {
        **_NDR,
        **_CTLPP,
        "update": "residual_norm",
        "activation": "gelu",
        "attention_kwargs": {"bias": True, "content_bias": False, "init": "ctlpp"},
        "d_model": 256,
        "dim_feedforward": 512,
        "nhead": 4,
        "num_layers": 8,
        "num_eval_layers": 10,
        "dropout": 0.5,
        "feedforward_dropout": 0.0,
        "attention_dropout": 0.1,
        "gate_dropout": 0.1,
        "readout": "first",
        "clip": 1.0,
        "steps": 80_000,
    },
}

# ---- SCAN, chapter 4 ------------------------------------------------------------------------------------------------

_SCAN = {
    "architecture": "seq2seq",
    "attention": "softmax",
    "universal": False,
    "embedding_scale": None,
    "d_model": 128,
    "dim_feedforward": 256,
    "nhead": 8,
    "num_layers": 3,
    "dropout": 0.1,
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 256,
    "clip": 5.0,
    "steps": 50_000,
    "eval_every": 2500,
}
SCAN = {
    "transformer": _SCAN,
    "transformer-rel": {**_SCAN, "attention": "relative"},
    "universal": {**_SCAN, "universal": True},
    "universal-rel": {**_SCAN, "attention": "relative", "universal": True},
}

# ---- Memory, chapter 2 ----------------------------------------------------------------------------------------------

_MEMORY = {
    "optimizer": "rmsprop",
    "lr": 1e-4,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "decay": "weights",
    "clip": 10.0,
    "batch_size": 16,
    "steps": 100_000,
}
_BITS = {**_MEMORY, "architecture": "bits", "eval_samples": 320}
_VARIANTS = ("dnc", "dnc-d", "dnc-m", "dnc-s", "dnc-md", "dnc-ms", "dnc-ds", "dnc-mds")


def _memory_models(shared, lstm_size, **sizes):
    """All variants of the DNC, and an NTM of the sizes of (Graves et al. 2014) and an LSTM, which the released code has
    not. Masks are as released: from 0 on and first one half; the thesis suggests a bias of 1.
    """
    letters = {"masked": "m", "dealloc": "d", "sharpen": "s"}
    dnc = {**shared, "memory": "dnc", **sizes}
    models = {}
    for name in _VARIANTS:
        models[name] = {**dnc, **{option: letter in name[4:] for option, letter in letters.items()}}
        if models[name]["masked"]:
            models[name] = {"mask_min": 0.0, "mask_bias": 0.0, **models[name]}
        else:
            models[name].pop("mask_min", None)
    models["ntm"] = {**shared, "memory": "ntm", "hidden_size": 100, "num_cells": 128, "word_size": 20, "num_heads": 1}
    return {**models, "lstm": {**shared, "memory": "lstm", "hidden_size": lstm_size, "num_layers": 1}}


COPY = _memory_models(_BITS, 256, hidden_size=32, num_cells=16, word_size=16, num_reads=1)
RECALL = _memory_models(_BITS, 256, hidden_size=128, num_cells=64, word_size=32, num_reads=1, mask_min=0.1)
KEY_VALUE = _memory_models(_BITS, 256, hidden_size=32, num_cells=16, word_size=32, num_reads=1)
_WORDS = {**_MEMORY, "architecture": "words", "embedding_dim": 256, "batch_size": 2, "steps": 500_000}
_WORDS["eval_every"] = 5000
BABI = _memory_models(_WORDS, 512, hidden_size=256, num_cells=256, word_size=64, num_reads=4)

_MODELS = {
    "ctl": CTL,
    "arithmetic": ARITHMETIC,
    "listops": LISTOPS,
    "ctlpp": CTLPP,
    "scan": SCAN,
    "copy": COPY,
    "repeat_copy": COPY,
    "associative_recall": RECALL,
    "key_value": KEY_VALUE,
    "key_value_2way": KEY_VALUE,
    "reversal": COPY,
    "babi": BABI,
}
_WITHOUT = {"bits": {"dropout", "bucketed"}, "words": {"dropout"}}  # defaults that an architecture has no use for


def _complete(settings):
    unused = _WITHOUT.get(settings["architecture"], ())
    return {name: value for name, value in {**DEFAULTS, **settings}.items() if name not in unused}


PRESETS = {task: {model: _complete(settings) for model, settings in models.items()} for task, models in _MODELS.items()}
