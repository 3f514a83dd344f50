"""From the settings of a preset to the module, and what it is trained for."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

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


class _LSTM(nn.Module):
    """An LSTM with a linear output at every step, called as :class:`sysgen.nn.DNC` is."""

    def __init__(self, input_size, output_size, hidden_size, num_layers):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.output = nn.Linear(hidden_size, output_size)

    def forward(self, input, lengths=None):
        """``lengths`` only matter to what nobody reads: nothing flows backwards in time."""
        hidden, state = self.lstm(input)
        return self.output(hidden), state


class _OfWords(nn.Module):
    """A memory model of words: logits of a word at every step."""

    def __init__(self, num_tokens, embedding_dim, memory):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.memory = memory

    def forward(self, tokens, lengths):
        return self.memory(self.embedding(tokens), lengths=lengths)[0]


def _transducer(settings, input_size, output_size):
    if settings["memory"] == "lstm":
        return _LSTM(input_size, output_size, settings["hidden_size"], settings["num_layers"])
    sizes = [settings[name] for name in ("hidden_size", "num_cells", "word_size")]
    if settings["memory"] == "ntm":
        return layers.NTM(input_size, output_size, *sizes, settings["num_heads"], batch_first=True)
    options = _some(settings, "masked", "dealloc", "sharpen", "mask_min", "mask_bias")
    return layers.DNC(input_size, output_size, *sizes, settings["num_reads"], batch_first=True, **options)


def _of_bits(settings, dataset):
    return _transducer(settings, dataset.input_size, dataset.output_size)


def _of_words(settings, dataset):
    memory = _transducer(settings, settings["embedding_dim"], dataset.num_tokens)
    return _OfWords(dataset.num_tokens, settings["embedding_dim"], memory)


_BUILDERS = {
    "encoder": _encoder,
    "rnn": _rnn,
    "dnc": _dnc,
    "seq2seq": _seq2seq,
    "bits": _of_bits,
    "words": _of_words,
}


def objective_for(settings):
    """``objective(model, batch) -> (loss, wrong outputs [B], outputs [B])``. The loss is cross-entropy: the mean over
    classes or tokens with the ponder loss of ACT, or for bits and words the sum over a sequence, as released.
    """
    known = {"seq2seq": _sequence_objective, "bits": _bits_objective, "words": _words_objective}
    return known.get(settings["architecture"]) or partial(_class_objective, ponder="act" in settings)


def _class_objective(model, batch, ponder):
    output = model(batch.tokens, batch.lengths)
    logits, extra = output if ponder else (output, 0)
    wrong = logits.argmax(-1) != batch.targets
    return F.cross_entropy(logits.float(), batch.targets) + extra, wrong.long(), torch.ones_like(batch.targets)


def _sequence_objective(model, batch):
    """Teacher forcing. A sequence is right if each of its tokens and the end is the likeliest after the right ones.
    Greedy decoding gives exactly the target if and only if that is so: no decoding is needed to know the accuracy.
    """
    logits = model(batch.tokens, batch.targets, batch.lengths, batch.target_lengths)
    targets = model.targets(batch.targets, batch.target_lengths)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return loss, *_wrong_tokens(logits, targets, targets >= 0)


def _wrong_tokens(logits, targets, counted):
    return ((logits.argmax(-1) != targets) & counted).sum(1), counted.sum(1)


def _words_objective(model, batch):
    """Word 0 is no answer: a step with this target does not count."""
    logits = model(batch.tokens, batch.lengths)
    targets = batch.targets
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=0, reduction="sum")
    return loss / len(targets), *_wrong_tokens(logits, targets, targets != 0)


def _bits_objective(model, batch):
    logits, _ = model(batch.inputs, lengths=batch.lengths)
    wrong = (logits > 0) != (batch.targets > 0)
    counted = None if batch.counted is None else batch.counted[..., None].expand_as(wrong)
    options = {"reduction": "sum", "weight": None if counted is None else counted.float()}
    loss = F.binary_cross_entropy_with_logits(logits.float(), batch.targets, **options) / len(logits)
    if counted is None:
        return loss, wrong.sum((1, 2)), wrong.new_full((len(wrong),), wrong[0].numel(), dtype=torch.int64)
    return loss, (wrong & counted).sum((1, 2)), counted.sum((1, 2))
