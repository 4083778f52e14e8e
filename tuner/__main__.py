"""`tune`: runs the command, and reports expected errors in one sentence."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence

import typer

from engine.errors import EngineError
from engine.inputs.visible import as_one_entry, log_to_stderr
from tuner.cli.home import give_home
from tuner.errors import TunerError, UsageError, WorkerError

log = logging.getLogger(__name__)


def main() -> None:
    """The console command. SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code. Errors go to stderr, with --json also to stdout,
    unless the command's one document is there already."""
    if sys.platform == "win32":
        sys.stderr.write("tune: native Windows is not supported; run it inside WSL2\n")
        return 1
    level = os.environ.get("EXPERTUNE_LOG", "").upper() or "WARNING"
    known = level in logging.getLevelNamesMapping()
    log_to_stderr(level if known else "WARNING", "%(levelname)s %(name)s: %(message)s")
    _open_closed_streams()
    _print_all_characters()
    if not known:
        log.warning("EXPERTUNE_LOG=%s is no level: try debug, info, warning or error", level)
    give_home(os.environ)
    try:
        _check_text(arguments)
        code = _invoke(list(arguments))
        # typer turns an interrupt into its exit code
        return _fail(arguments, "interrupted", code) if code == 130 else code
    except (TunerError, EngineError) as error:
        return _fail(arguments, str(error), _exit_code(error), _smallest(error))
    except typer.TyperException as error:
        return _fail(arguments, _usage_text(error), 2)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(arguments, f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except Exception as error:
        log.debug("unexpected", exc_info=True)
        text = f"unexpected {type(error).__name__}: {error} (EXPERTUNE_LOG=debug shows where)"
        return _fail(arguments, text, 1)


def _open_closed_streams() -> None:
    """Where a shell or a service closed stdout or stderr (`>&-`), what is printed goes nowhere."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _print_all_characters() -> None:
    """Under LANG=C or in an old code page, what the terminal cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_text(arguments: Sequence[str]) -> None:
    """Raises UsageError for an argument whose bytes are not text, which no store could hold."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UsageError(
                f"the argument '{shown[:80]}' is not text in UTF-8: write it in UTF-8, or rename "
                "the file"
            ) from None


def _invoke(arguments: list[str]) -> int:
    from tuner.cli.app import app  # here, so that `import tuner.__main__` costs nothing
    from tuner.cli.output import PRINTED

    PRINTED.set(False)
    command = typer.main.get_command(app)
    result = command.main(args=arguments, prog_name="tune", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _fail(arguments: Sequence[str], text: str, code: int, smallest_bytes: int | None = None) -> int:
    from tuner.cli.output import PRINTED, print_json

    if "--json" in arguments and not PRINTED.get():
        error = {"message": text, "exit_code": code, "smallest_bytes": smallest_bytes}
        print_json({"error": error})
    sys.stderr.write(f"tune: {as_one_entry(text)}\n")
    return code


def _exit_code(error: Exception) -> int:
    if isinstance(error, WorkerError):
        return error.worker_exit_code
    return int(getattr(error, "exit_code", 1))


def _smallest(error: Exception) -> int | None:
    found = getattr(error, "smallest_bytes", None)
    return found if isinstance(found, int) else None


def _usage_text(error: Exception) -> str:
    describe = getattr(error, "format_message", None)
    return str(describe() if callable(describe) else error)


if __name__ == "__main__":
    main()
