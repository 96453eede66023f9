"""The command line: flags, what is shown, and the exit status. What it does lives elsewhere.

Everything heavy is imported by the command that needs it, so that --help is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import fastce

USAGE = 2  # also for bad input: one line on stderr, which names the flag or the file
INTERRUPTED = 130  # 128 + SIGINT, and
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports programs that these signals end


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line: argparse would print the usage first, and arguments may hold line breaks.
        self.exit(USAGE, f"{self.prog}: {_one_line(message)}\n")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _say(line: str) -> None:
    """Print a line at once, also into a pipe, and also if a path in it is no text for it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # stdout is None if it is closed
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _integer(least: int, bits: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        if bits is not None and value >= 2**bits:
            raise argparse.ArgumentTypeError(f"expected less than 2**{bits}, got {text}")
        return value

    return integer


def _learning_rate(text: str) -> float:
    value = float(text)
    if not 1.4013e-45 <= value <= 3.4028234e38:  # as a float32
        raise argparse.ArgumentTypeError(f"expected a finite float32 above 0, got {text}")
    return value


def _hidden(text: str) -> tuple[int, ...]:
    unit_count = _integer(1)
    try:
        return tuple(unit_count(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N or N,N,..., got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastce",
        description="Softmax cross-entropy on CPUs: train with it, evaluate, time it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastce {fastce.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    train = commands.add_parser(
        "train",
        help="train a small network on MNIST",
        description="Train a network of ReLU layers on MNIST, through fastce's fused loss.",
        allow_abbrev=False,
    )
    _add_data_flags(train)
    add = train.add_argument
    add(
        "--hidden",
        type=_hidden,
        default=(128,),
        metavar="N[,N...]",
        help="units of each hidden layer (128)",
    )
    add(
        "--epochs",
        type=_integer(1),
        default=10,
        metavar="N",
        help="in total, also with --resume (10)",
    )
    add("--batch-size", type=_integer(1), default=64, metavar="N", help="images per step (64)")
    add("--lr", type=_learning_rate, default=1e-3, metavar="X", help="learning rate (0.001)")
    add("--optimizer", choices=("adam", "sgd"), default="adam", help="sgd has momentum 0.9 (adam)")
    add(
        "--seed", type=_integer(0, 128), default=0, metavar="N", help="of weights and shuffling (0)"
    )
    add(
        "--threads",
        type=_integer(1),
        metavar="N",
        help="of fastce's kernels; OPENBLAS_NUM_THREADS is for NumPy's",
    )
    add(
        "--out",
        default=os.path.join("runs", "mnist"),
        metavar="DIR",
        help="for the results (runs/mnist)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --out, if there is one; without it a run starts anew",
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="loss, accuracy and more of a trained model",
        description="Print what fastce.evaluate says of a model on the test images, and last its "
        "loss and accuracy.",
        allow_abbrev=False,
    )
    evaluate.add_argument("model", help="a model.npz that fastce train wrote")
    _add_data_flags(evaluate)
    evaluate.set_defaults(run=_evaluate)

    # Only for --help: main() hands its arguments on before anything is parsed.
    commands.add_parser("bench", help="time the loss against other libraries", add_help=False)
    info = commands.add_parser("info", help="version, instruction set and threads in use")
    info.set_defaults(run=_info)
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--data", metavar="DIR", help="the four IDX files; without it, the embedded subset"
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="fetch the full MNIST into a cache folder, and use it",
    )


def _data_folder(arguments: argparse.Namespace) -> str | os.PathLike[str] | None:
    folder: str | None = arguments.data
    if folder == "":
        raise ValueError("--data: expected a folder, got ''")
    if arguments.download:
        from fastce.mlp.download import download_mnist

        return download_mnist(say=_say)
    return folder


@contextmanager
def _progress(title: str, n_rows: int) -> Iterator[Callable[[int], object] | None]:
    """A bar for one epoch, on a terminal with tqdm; else nothing, the line per epoch is enough."""
    if sys.stderr is None or not sys.stderr.isatty():  # None: closed
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=n_rows, desc=title, unit=" images", unit_scale=True, leave=False) as bar:
        yield bar.update


def _train(arguments: argparse.Namespace) -> None:
    from fastce.mlp import load_mnist
    from fastce.mlp.run import train

    if arguments.threads is not None:
        try:
            fastce.set_num_threads(arguments.threads)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"--threads: {error}") from None
    last = train(
        load_mnist(_data_folder(arguments)),
        arguments.out,
        hidden=arguments.hidden,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        optimizer=arguments.optimizer,
        seed=arguments.seed,
        resume=arguments.resume,
        say=_say,
        progress=_progress,
    )
    _say_result(last.test_loss, last.test_accuracy)


def _evaluate(arguments: argparse.Namespace) -> None:
    from fastce.mlp import MLPClassifier
    from fastce.mlp.mnist import load_test_set

    classifier = MLPClassifier.load(arguments.model)
    X_test, y_test = load_test_set(_data_folder(arguments))
    try:
        result = classifier.evaluate(X_test, y_test)
    except ValueError as error:
        raise ValueError(f"{arguments.model}: not a model for these images: {error}") from None
    _say(str(result))
    _say_result(result.loss, result.accuracy)


def _say_result(loss: float, accuracy: float) -> None:
    _say(f"test loss {loss:.4f}, test accuracy {accuracy:.4f}")


def _info(arguments: argparse.Namespace) -> None:
    fastce.show_config()


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        0 done; 2 bad input or usage, after one line on stderr; 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = "fastce"
    try:
        if argv[:1] == ["bench"]:
            command = "fastce bench"
            from fastce.benchmark import main as bench

            return bench(argv[1:])
        arguments = _parser().parse_args(argv)
        command = f"fastce {arguments.command}"
        arguments.run(arguments)
        return 0
    except SystemExit as stop:  # argparse, after --help or an error
        return stop.code if isinstance(stop.code, int) else USAGE
    except BrokenPipeError:
        # As in `fastce train | head`. Else Python complains at exit that it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        message = (
            f"{error.filename or 'output'}: {error.strerror}" if error.strerror else str(error)
        )
    except (ValueError, MemoryError) as error:
        message = str(error)
    print(f"{command}: {_one_line(message)}", file=sys.stderr)
    return USAGE
