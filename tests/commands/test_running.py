"""What becomes of whatever ends a command: an exit code, and one line where the user can put it right."""

import io
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from vlm.cli import COMMANDS, main
from vlm.commands.running import run_safely
from vlm.errors import CheckpointError, DataError, HubError, ImageError, TrainingError, VlmError


def end(error: BaseException | None = None, code: int | None = None, **options: bool) -> int:
    def run(_: Namespace) -> int | None:
        if error is not None:
            raise error
        return code

    return run_safely(Namespace(run=run, **options))


@pytest.mark.parametrize("code", [None, 0, 75])
def test_a_command_that_ends_well_gives_its_own_code(code: int | None):
    assert end(code=code) == (code or 0)


@pytest.mark.parametrize(
    "error",
    [
        VlmError("a \n b"),
        DataError("a b"),
        CheckpointError("a b"),
        HubError("a b"),
        TrainingError("a b"),
        ImageError("a.png", "missing", "a b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_user_can_put_right_is_one_line_and_code_1(error: VlmError, capsys: pytest.CaptureFixture[str]):
    assert end(error) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vlm: error: ") and "a b" in err and err.count("\n") == 1


def test_a_defect_keeps_its_traceback_and_says_where_to_report_it(capsys: pytest.CaptureFixture[str]):
    assert end(RuntimeError("so it is")) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "RuntimeError: so it is" in lines
    assert "defect of vlm" in lines[-1] and "where you got vlm from" in lines[-1]


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_shows_the_traceback_of_every_error(way: str, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("VLM_DEBUG", "1" if way == "environment" else "0")
    assert end(DataError("a b"), debug=way == "option") == 1
    assert end(KeyboardInterrupt(), debug=way == "option") == 130
    assert end(RuntimeError("a b"), debug=way == "option") == 70
    err = capsys.readouterr().err
    assert err.count("Traceback") == 3 and "vlm: error: a b" in err and "vlm: stopped" in err


def test_ctrl_c_is_130_and_one_line(capsys: pytest.CaptureFixture[str]):
    assert end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "vlm: stopped\n"


def test_ctrl_c_that_became_another_error_is_still_ctrl_c(capsys: pytest.CaptureFixture[str]):
    """Code in C catches KeyboardInterrupt and raises what it likes, as NumPy does while it is imported."""

    def run(_: Namespace) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to load") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_safely(Namespace(run=run)) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "vlm: stopped\n"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_another_handler_of_ctrl_c_stays(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        run_safely(Namespace(run=lambda args: signal.raise_signal(signal.SIGINT)))
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_usage_errors_keep_their_code():
    with pytest.raises(SystemExit) as stopped:
        end(SystemExit(2))
    assert stopped.value.code == 2


PRINT = "import sys; from argparse import Namespace; from vlm.commands.running import run_safely; sys.exit(run_safely("


def test_a_closed_pipe_is_silence():
    code = f"{PRINT}Namespace(run=lambda args: [print('x' * 99) for _ in range(99999)] and None)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    code = f"{PRINT}Namespace(run=lambda args: print('x'))))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vlm: error: no space left") and done.stderr.count("\n") == 1


def test_ctrl_c_in_an_evaluated_string_does_not_end_python_by_the_signal():
    code = (
        "import signal, sys; from argparse import Namespace; from vlm.commands.running import run_safely\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(run_safely(Namespace(run=lambda args: eval('signal.raise_signal(2)'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "vlm: stopped\n")


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_first_seconds_is_130_and_one_line(command: str, image_folder: Path, tmp_path: Path):
    """A real process and a real signal, while torch is imported or the model is loaded."""
    image, folder = str(image_folder / "a.png"), str(image_folder)
    (tmp_path / "recipe.toml").write_text(f'task = "clip"\n[model]\nsource = "mini"\n[data]\ntrain = "{folder}"\n')
    (tmp_path / "captions.txt").write_text("a dog\n" * 9)
    words = {
        "classify": [image, "--labels", "a"],
        "search": ["a", "--folder", folder],
        "index": [folder, "--index", "i"],
        "look": [image],
        "serve": ["--port", "0"],
        "demo": [],
        "check": [folder],
        "tokenizer": ["captions.txt", "--out", "t"],
        "train": ["recipe.toml", "--out", "o"],
        "wise-ft": ["a", "b", folder, "--choose", "x"],
        "evaluate": ["mini", "--data", folder],
        "probe": ["mini", folder, "--choose", "x"],
        "report": ["a", folder, "--split", "x", "--out", "r"],
        "convert": ["mini", "c"],
        "export": ["mini", "x", "--to", "openclip"],
        "embed": ["mini", folder, "--out", "e"],
    }.get(command, [])
    for after in (0.35, 1.1):
        process = subprocess.Popen(
            [sys.executable, "-m", "vlm", command, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        _, err = process.communicate(timeout=60)
        if process.returncode not in (0, 1, 2):  # some commands are done that fast
            assert process.returncode == 130, err
            assert "Traceback" not in err and err.splitlines()[-1] == "vlm: stopped", err


def test_stdout_that_cannot_be_reconfigured_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert end() == 0


def test_the_version_names_what_runs(capsys: pytest.CaptureFixture[str]):
    import torch

    import vlm

    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"vlm {vlm.__version__}" in out and torch.__version__ in out and ("cpu" in out or "cuda" in out)


def test_help_lists_every_command_once_with_its_summary(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    listed = [words[0] for words in lines if words[0] in COMMANDS]
    assert sorted(listed) == sorted(COMMANDS)
    assert all(len(words) > 3 for words in lines if words[0] in COMMANDS)
