"""From the settings of a preset to the module, and what it is trained for."""

from functools import partial

import torch.nn.functional as F

from .. import nn as layers


def build(settings, dataset):
    """The model of ``settings`` for the tokens and classes of ``dataset``."""
    return _BUILDERS[settings["architecture"]](settings, dataset)


def _some(settings, *names):
    return {name: settings[name] for name in names if name in settings}


def _encoder(settings, dataset):
    shared = _some(settings, "d_model", "nhead", "dim_feedforward", "dropout", "attention", "attention_dropout")
    if settings["layer"] == "ndr":
        own = ("gate_dropout", "gate_bias", "activation", "update", "feedforward_dropout", "attention_kwargs")
        layer = layers.NDREncoderLayer(**shared, **_some(settings, *own))
    else:
        layer = layers.TransformerEncoderLayer(**shared)
    if "act" in settings:
        encoder = layers.ACTEncoder(
            layer,
            settings["num_layers"],
            threshold=settings["act_threshold"],
            variant=settings["act"],
            loss_weight=settings["act_loss_weight"],
        )
    else:
        encoder = layers.SharedEncoder(layer, settings["num_layers"], settings["num_eval_layers"])
    return layers.SequenceClassifier(
        encoder,
        dataset.num_tokens,
        dataset.num_classes,
        settings["d_model"],
        readout=settings["readout"],
        embedding=settings["embedding"],
    )


def _rnn(settings, dataset):
    return layers.RNNClassifier(
        dataset.num_tokens,
        dataset.num_classes,
        settings["d_model"],
        **_some(settings, "embedding_dim", "num_layers", "bidirectional", "dropout", "released_readout"),
    )


def _dnc(settings, dataset):
    memory = ("num_cells", "num_reads", "masked", "dealloc", "sharpen")
    return layers.DNCClassifier(
        dataset.num_tokens,
        dataset.num_classes,
        settings["d_model"],
        **_some(settings, "embedding_dim", "dropout", "released_readout", *memory),
    )


def _seq2seq(settings, dataset):
    return layers.Seq2SeqTransformer(
        dataset.num_tokens,
        len(dataset.output_vocabulary),
        num_encoder_layers=settings["num_layers"],
        num_decoder_layers=settings["num_layers"],
        **_some(settings, "d_model", "nhead", "dim_feedforward", "dropout", "attention"),
        **_some(settings, "universal", "embedding_scale"),
    )


_BUILDERS = {"encoder": _encoder, "rnn": _rnn, "dnc": _dnc, "seq2seq": _seq2seq}


def objective_for(settings):
    """``objective(model, batch) -> (loss, right [B])``: cross-entropy, with the ponder loss of ACT."""
    if settings["architecture"] == "seq2seq":
        return _sequence_objective
    return partial(_class_objective, ponder="act" in settings)


def _class_objective(model, batch, ponder):
    output = model(batch.tokens, batch.lengths)
    logits, extra = output if ponder else (output, 0)
    return F.cross_entropy(logits.float(), batch.targets) + extra, logits.argmax(-1) == batch.targets


def _sequence_objective(model, batch):
    """Teacher forcing. A sequence is right if each of its tokens and the end is the likeliest after the right ones.
    Greedy decoding gives exactly the target if and only if that is so: no decoding is needed to know the accuracy.
    """
    logits = model(batch.tokens, batch.targets, batch.lengths, batch.target_lengths)
    targets = model.targets(batch.targets, batch.target_lengths)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return loss, ((logits.argmax(-1) == targets) | (targets < 0)).all(1)
