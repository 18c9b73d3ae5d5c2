"""The command line. Each command reads its options, calls one function and prints what came back.

torch and everything that needs it is imported inside the commands: `afactl --help` must be quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated, cast

import typer

from afactl import __version__
from afactl.cli import (
    ablate,
    compare,
    data,
    doctor,
    dump_cams,
    evaluate,
    explore,
    export,
    predict,
    presets,
    pseudo_eval,
    report,
    runs,
    train,
    viz,
)
from afactl.errors import AfactlError, UsageError, first_line
from afactl.files import without_locks
from afactl.machine.allocator import keep_freed_memory
from afactl.machine.launch import launched, unlaunched_note
from afactl.machine.terminal import error_line, keep_quiet, log, out

app = typer.Typer(
    name="afactl",
    help="Masks from tagged photos: AFA, Learning Affinity from Attention (CVPR 2022).\n\n"
    "Start with: afactl train demo, afactl pseudo-eval --split train, afactl viz-attn --query 60,50, "
    "afactl predict PHOTOS. With --verbose anywhere, an error shows where it came from. With --no-lock anywhere, "
    "nothing keeps two commands from writing one file: for file systems without locks, at your own risk.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"afactl {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


# In the order of the help.
for command in (
    train,
    pseudo_eval,
    evaluate,
    compare,
    dump_cams,
    ablate,
    predict,
    viz,
    explore,
    report,
    runs,
    presets,
    export,
    doctor,
):
    app.add_typer(command.app)
app.add_typer(data.app, name="data")


# What `afactl` alone prints.
FIRST_STEPS = """\
afactl: masks from tagged photos (AFA, Learning Affinity from Attention, CVPR 2022)

The first five commands, in this order:

  afactl train demo                  train on generated pictures, some minutes on two cores
  afactl pseudo-eval                 score the pseudo labels: Table 3 of the paper
  afactl viz-attn --query 60,50      see what the attention of a pixel has learned
  afactl predict PHOTOS --overlay    masks for any photos
  afactl report                      all of it on one page

Your own photos: afactl data check DIR, then afactl train photos --data DIR. All commands: afactl --help"""


# Commands whose work several processes share, started by torchrun.
SHARED = ("train", "dump-cams", "predict", "eval")


def _processes(arguments: list[str]) -> contextlib.AbstractContextManager[None]:
    """Join the other processes where torchrun has started several; all but the first one keep quiet."""
    if {"--help", "-h", "--version"} & set(arguments) or "_AFACTL_COMPLETE" in os.environ:
        return contextlib.nullcontext()
    place = launched()
    if place is None:
        note = unlaunched_note()
        if note and arguments[:1] and arguments[0] in SHARED:
            log.print(note)
        return contextlib.nullcontext()
    if arguments[:1] and arguments[0] not in SHARED:
        raise UsageError(
            f"afactl {arguments[0]}: runs in one process; only {', '.join(SHARED)} can share their work under torchrun"
        )
    # DistributedDataParallel would wonder at every phase that uses all parameters.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from afactl.machine.distributed import joined

    if place.rank > 0:
        keep_quiet()
    return joined(place)


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from afactl.machine.devices import is_out_of_memory

    return is_out_of_memory(error)


# Typer brings its own copy of click's exceptions in newer versions: reach them through its own.
_ParseError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])  # all of them have its methods


def _help_of(error: typer.BadParameter) -> str:
    """The call that explains the command whose options were wrong."""
    return f"{error.ctx.command_path if error.ctx else 'afactl'} --help"


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every error becomes one line and an exit code."""
    keep_freed_memory()
    # Operations that Apple's or Intel's devices lack run on the CPU for that call, and torch says so once. torch reads
    # it when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("PYTORCH_ENABLE_XPU_FALLBACK", "1")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose, unlocked = "--verbose" in arguments, "--no-lock" in arguments
    arguments = [argument for argument in arguments if argument not in ("--verbose", "--no-lock")]
    if not arguments and "_AFACTL_COMPLETE" not in os.environ:  # which the shell's completion sets
        for line in FIRST_STEPS.splitlines():
            out.print(line)
        sys.exit(0)
    command = typer.main.get_command(app)
    try:
        with _processes(arguments), without_locks() if unlocked else contextlib.nullcontext():
            code = command.main(arguments, prog_name="afactl", standalone_mode=False)
    except AfactlError as error:
        if verbose:
            traceback.print_exc()
        error_line(str(error))
        code = error.exit_code
    except _ParseError as error:
        error_line(f"{error.format_message()} (see {_help_of(error)})")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        error_line("stopped")
        code = 130
    except OSError as error:  # such as a full disk, wherever it is met
        if verbose:
            traceback.print_exc()
        error_line(f"{error.filename or 'the system says'}: {error.strerror or error}; mend that, then call again")
        code = 1
    except Exception as error:
        if verbose:
            raise
        if _is_out_of_memory(error):
            text = f"out of memory ({first_line(error)}); try smaller photos or --device cpu, or end other programs"
        else:
            text = f"unexpected {type(error).__name__}: {error} (this is a bug; --verbose shows where)"
        error_line(text)
        code = 1
    sys.exit(code)
