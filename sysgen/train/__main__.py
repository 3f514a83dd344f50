"""``python -m sysgen.train <task> --model <preset>``: train a model of the thesis."""

import argparse
import signal
import sys

from .checkpoint import CheckpointError
from .figures import OUTPUTS
from .interruption import Interruption
from .loop import Diverged
from .presets import PRESETS, TASKS
from .run import run
from .settings import FIELDS, RUN_FIELDS, TASK_FIELDS, SettingsError, resolve

# Exit status of a run that stopped with a checkpoint: "try again later", as in sysexits.h.
PAUSED = 75


def parser_of():
    parser = argparse.ArgumentParser(
        prog="python -m sysgen.train",
        description=__doc__.splitlines()[0].split(": ", 1)[1],
        epilog="Presets and their settings: python -m sysgen.train <task> --list",
    )
    tasks = parser.add_subparsers(dest="task", metavar="task", help=", ".join(PRESETS), required=True)
    for task, presets in PRESETS.items():
        _add_arguments(tasks.add_parser(task, prog=f"python -m sysgen.train {task}"), task, presets)
    return parser


def _add_arguments(parser, task, presets):
    parser.add_argument("--model", metavar="PRESET", help=", ".join(presets))
    parser.add_argument("--list", action="store_true", help="show the presets with all their settings, and stop")
    how = parser.add_argument_group("run")
    how.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<task>-<model>-<seed>)")
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)")
    how.add_argument("--resume", action="store_true", help="continue the run in the folder, if there is one")
    how.add_argument("--checkpoint-every", type=int, metavar="N", help="steps (default: those of --eval-every)")
    how.add_argument("--time-limit", type=float, metavar="S", help="stop with a checkpoint after S seconds")
    how.add_argument("--no-figures", dest="figures", action="store_false", help="draw no figures")
    how.add_argument("--quiet", dest="progress", action="store_false", help="show no progress")
    kind = how.add_mutually_exclusive_group()
    kind.add_argument(
        "--compile", dest="execution", action="store_const", const="compile", help="torch.compile the model"
    )
    kind.add_argument(
        "--cuda-graphs", dest="execution", action="store_const", const="graph", help="one CUDA graph a padded length"
    )
    for name, field in RUN_FIELDS.items():
        _add_setting(how, name, field)
    options = parser.add_argument_group("data")
    for name in TASKS[task]["options"]:
        _add_setting(options, name, TASK_FIELDS[name])
    own = parser.add_argument_group("settings that replace those of the preset")
    used = {name for settings in presets.values() for name in settings}
    for name, field in FIELDS.items():
        if name in used:
            _add_setting(own, name, field)


def _add_setting(group, name, field):
    def parse(text):
        try:
            return field.parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {field.condition}, got {text!r}") from None

    metavar = {int: "N", float: "X", str: "NAME"}.get(field.parse, "yes|no")
    group.add_argument(
        f"--{name.replace('_', '-')}",
        dest=name,
        type=parse,
        metavar=metavar,
        default=argparse.SUPPRESS,
        help=f"{field.help}; {field.condition}",
    )


def show_presets(task, model=None):
    """Prints the settings of the presets of a task, or of one."""
    for name in PRESETS[task] if model is None else [model.replace("_", "-")]:
        print(f"{task} {name}")
        try:
            settings = resolve(task, name, on_gpu=True)
        except SettingsError as error:
            print(f"  {error}\n")
            continue
        for key, value in settings.items():
            if key not in ("task", "model", "execution", *RUN_FIELDS):
                print(f"  {key:20}{'–' if value is None else value}")
        print()


def main(argv=None):
    parser = parser_of()
    arguments = vars(parser.parse_args(argv))
    task, model = arguments.pop("task"), arguments.pop("model")
    if arguments.pop("list"):
        if model is not None and model.replace("_", "-") not in PRESETS[task]:
            return _refuse(parser, f"task {task} has no preset {model!r}; known: {', '.join(PRESETS[task])}")
        show_presets(task, model)
        return 0
    if model is None:
        return _refuse(parser, f"--model is needed, one of {', '.join(PRESETS[task])}")
    if arguments["execution"] is None:
        del arguments["execution"]
    try:
        with Interruption() as interruption:
            result = run(task, model, interruption=interruption, **arguments)
    except (SettingsError, CheckpointError) as error:
        return _refuse(parser, str(error))
    except (Diverged, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped at once; the run goes on from its last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    return _report(result)


def _report(result):
    if result["status"] != "finished":
        at = f"step {result['step']} of {result['settings']['steps']}"
        print(f"Stopped ({result['status']}) at {at} with a checkpoint. The same command with --resume continues.")
        number = getattr(signal, result["status"], None)
        return PAUSED if number is None else 128 + number
    kind = OUTPUTS.get(result["settings"]["architecture"])
    for which, scores in result["test"].items():
        splits = {name: v for name, v in scores.items() if name != "step"}
        shown = "  ".join(f"{name} {v['accuracy']:.4f}" for name, v in splits.items())
        if kind:
            shown += f"; wrong {kind}: " + "  ".join(f"{name} {v['wrong']:.3f}" for name, v in splits.items())
        print(f"test, {which} checkpoint (step {scores['step']}): {shown}")
    print(f"{result['seconds']:.1f} s, {result['steps_per_second'] or 0:.1f} steps/s, evaluations included")
    return 0


def _refuse(parser, message):
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
