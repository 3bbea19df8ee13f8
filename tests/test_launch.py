"""`fanin run`: the script must not be able to tell, and neither must whoever started it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from fanin import launch

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_spawnp"), reason="needs POSIX")

PYTHON = sys.executable
TELL = "import json, sys, os; print(json.dumps([sys.argv, sys.path, os.getcwd()]))"
FAKE_TORCH = """
import sys
loaded = False
print("torch begins", file=sys.stderr)
import torch.part
loaded = True
"""
FAKE_HOOK = """
import os, sys, torch
def install(framework):
    print("hook", torch.loaded, "fanin" in sys.modules, os.environ["FANIN_STEPS"], file=sys.stderr)
    {more}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # From the tree, so that the tests need no installation: absolute, as scripts change their directory.
    monkeypatch.setenv("PYTHONPATH", str(Path(launch.__file__).parents[1]))
    return tmp_path


def started(*command: str, options: tuple[str, ...] = ("--no-report",)) -> subprocess.Popen[str]:
    arguments = [PYTHON, "-m", "fanin", "run", *options, "--", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def fanin_run(
    *command: str, options: tuple[str, ...] = ("--no-report",), stdin: str = ""
) -> tuple[int, str, str]:
    process = started(*command, options=options)
    out, err = process.communicate(stdin)
    return process.returncode, out, err


def packages(root: Path, files: dict[str, str]) -> None:
    """Write modules, and make packages of the folders that they are in."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
        path.write_text(text)


def ahead(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])


# ── nothing changes ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "command",
    [
        [PYTHON, "script.py", "--lr", "0.1", "--", "--format", "json", "-o", "é *", ""],
        [PYTHON, "-m", "package.tool", "--trial", "x"],
        [PYTHON, "-c", TELL, "-h"],
        [PYTHON, "-I", "-c", TELL],
        ["sh", "-c", f"'{PYTHON}' script.py \"$@\"", "sh", "a b"],
    ],
    ids=["script", "module", "-c", "-I", "sh"],
)
def test_arguments_path_and_folder_are_what_they_would_be(command: list[str], here: Path) -> None:
    packages(here, {"script.py": TELL, "package/tool.py": TELL})
    plain = subprocess.run(command, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr
    assert fanin_run(*command) == (0, plain.stdout, plain.stderr)


def test_it_works_without_two_dashes(here: Path) -> None:
    packages(here, {"script.py": TELL})
    process = subprocess.run(
        [PYTHON, "-m", "fanin", "run", "--no-report", PYTHON, "script.py", "--steps", "x"],
        capture_output=True,
        text=True,
    )
    assert '["script.py", "--steps", "x"]' in process.stdout


@pytest.mark.parametrize("code", [0, 1, 3, 7, 255])
def test_the_exit_code_is_the_scripts(code: int) -> None:
    assert fanin_run(PYTHON, "-c", f"raise SystemExit({code})")[0] == code


def test_stdin_stdout_and_stderr_are_the_scripts() -> None:
    echo = "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('err')"
    assert fanin_run(PYTHON, "-c", echo, stdin="line\n\x00end") == (0, "line\n\x00end", "err")


def test_the_process_group_and_the_handled_signals_are_the_scripts() -> None:
    tell = "import os, signal; print(os.getpgrp(), signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    assert fanin_run(PYTHON, "-c", tell)[1] == f"{os.getpgrp()} set()\n"
    ignored = (
        "import signal; print(*[s for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN])"
    )
    plain = subprocess.run([PYTHON, "-c", ignored], capture_output=True, text=True).stdout
    assert fanin_run(PYTHON, "-c", ignored)[1] == plain


def test_pythonpath_of_the_user_comes_after_ours_and_descendants_inherit_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ahead(here / "mine")
    monkeypatch.setenv("PYTHONPATH", path)
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELL!r}])"
    plain = subprocess.run([PYTHON, "-c", nested], capture_output=True, text=True).stdout
    assert str(here / "mine") in plain
    assert fanin_run(PYTHON, "-c", nested) == (0, plain, "")
    _, out, _ = fanin_run(PYTHON, "-c", "import os; print(os.environ['PYTHONPATH'])")
    assert out.strip() == os.pathsep.join([str(launch.SITE), path])


def test_an_empty_pythonpath_does_not_become_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    assert launch.environment("t", 1)["PYTHONPATH"] == str(launch.SITE)


# ── sitecustomize ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text", ["print('theirs', __file__)", "import no_such_module", "raise ImportError('x')"]
)
def test_the_sitecustomize_that_ours_hides_runs_as_if_it_had_been_found_first(
    text: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_only = f"import sys\nif 'fanin' not in sys.orig_argv:\n    {text}"
    packages(here / "mine", {"sitecustomize.py": child_only})
    monkeypatch.setenv("PYTHONPATH", ahead(here / "mine"))
    command = [PYTHON, "-c", "import sys; print(getattr(sys.modules.get('sitecustomize'), '__file__', None))"]
    plain = subprocess.run(command, capture_output=True, text=True)
    assert fanin_run(*command) == (plain.returncode, plain.stdout, plain.stderr)


def test_without_one_there_is_none() -> None:
    assert fanin_run(PYTHON, "-c", "import sys; print('sitecustomize' in sys.modules)")[1] == "False\n"


def test_nothing_of_ours_is_imported_before_torch() -> None:
    tell = "import sys; print([m for m in sys.modules if m.partition('.')[0] in ('fanin', 'numpy', 'click')])"
    assert fanin_run(PYTHON, "-c", tell)[1] == "[]\n"


@pytest.fixture
def fakes(here: Path) -> Path:
    packages(
        here / "fakes",
        {
            "torch/__init__.py": FAKE_TORCH,
            "torch/part.py": "import sys; print('part', file=sys.stderr)",
            "fanin/autowatch.py": FAKE_HOOK.format(more=""),
        },
    )
    return here / "fakes"


def with_fakes(fakes: Path, code: str) -> tuple[int, str, str]:
    """Run code where torch and fanin are fakes; the parent is the real one."""
    environment = f"import sys; sys.path.insert(0, {str(fakes)!r})\n"
    return fanin_run(PYTHON, "-c", environment + code, options=("--no-report", "--steps", "4"))


def test_the_hook_is_called_once_and_only_when_torch_is_complete(fakes: Path) -> None:
    code, _, err = with_fakes(
        fakes,
        "import importlib.util, sys\n"
        "importlib.util.find_spec('torch')\n"  # as libraries do to see whether it is there
        "print('before', file=sys.stderr)\n"
        "import torch, torch.part\n"
        "assert type(torch.__loader__).__name__ == 'SourceFileLoader'\n"
        "assert 'exec_module' not in vars(torch.__spec__.loader)\n"
        "assert not any(type(f).__name__ == 'Waiting' for f in sys.meta_path)\n",
    )
    assert code == 0, err
    assert err.splitlines() == ["before", "torch begins", "part", "hook True True 4"]


def test_a_torch_that_cannot_be_imported_fails_as_it_would(fakes: Path) -> None:
    (fakes / "torch" / "part.py").write_text("raise OSError('no such library')")
    code, out, err = with_fakes(fakes, "try:\n import torch\nexcept OSError as error:\n print(error)")
    assert (code, out) == (0, "no such library\n")
    assert "hook" not in err


@pytest.mark.parametrize(
    "more", ["raise RuntimeError('ours')", "import fanin_no_such", "assert False, 'two\\nlines'"]
)
def test_what_the_hook_raises_is_one_line_and_harms_nothing(more: str, fakes: Path) -> None:
    packages(fakes, {"fanin/autowatch.py": FAKE_HOOK.format(more=more)})
    code, out, err = with_fakes(fakes, "import torch; print(torch.loaded)")
    assert (code, out) == (0, "True\n")
    assert [line for line in err.splitlines() if line.startswith("fanin: ")] == err.splitlines()[-1:]


def test_an_interpreter_without_fanin_says_so_in_one_line(fakes: Path) -> None:
    missing = "raise ModuleNotFoundError(name='fanin')"
    packages(fakes, {"fanin/autowatch.py": missing})
    code, _, err = with_fakes(fakes, "import torch")
    assert code == 0
    assert err.splitlines()[-1] == f"fanin: nothing will be watched: {PYTHON} has no module fanin"


def test_without_a_trial_ours_does_nothing(fakes: Path) -> None:
    folders = os.pathsep.join([str(launch.SITE), str(fakes)])
    environment = {k: v for k, v in os.environ.items() if k != "FANIN_TRIAL"} | {"PYTHONPATH": folders}
    done = subprocess.run([PYTHON, "-c", "import torch"], capture_output=True, text=True, env=environment)
    assert done.stderr.splitlines() == ["torch begins", "part"]


# ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────

WAITING = """
import signal, sys, time
def heard(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(9)
for name in {names}:
    signal.signal(getattr(signal, name), heard)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def waiting(*names: str, options: tuple[str, ...] = ("--no-report",)) -> subprocess.Popen[str]:
    process = started(PYTHON, "-c", WAITING.format(names=names), options=options)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_that_is_sent_to_us_reaches_the_script(name: str) -> None:
    process = waiting(name)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate()
    assert (process.returncode, out, err) == (9, f"{name}\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_whom_a_signal_ends_is_seen_to_be_ended_by_it(number: signal.Signals) -> None:
    process = waiting()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_script_that_a_signal_ends_ends_us_the_same_way(number: signal.Signals) -> None:
    code, _, _ = fanin_run(PYTHON, "-c", f"import os; os.kill(os.getpid(), {int(number)})")
    assert code == -number


def test_with_other_threads_signals_are_passed_on_as_well() -> None:
    code = (
        "import threading, sys, fanin.launch as launch\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"launch.end_like(launch.launch(['{PYTHON}', '-c', {WAITING.format(names=('SIGTERM',))!r}], 'trial', 1))\n"
    )
    process = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, out) == (9, "SIGTERM\n")


def test_ctrl_c_at_a_terminal_reaches_the_script_once() -> None:
    """A terminal sends to the whole group: if we passed it on, the script would be interrupted twice."""
    import pty

    count = (
        "import signal, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        "print('ready', flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "print('heard', len(heard), flush=True)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(PYTHON, [PYTHON, "-m", "fanin", "run", "--no-report", "--", PYTHON, "-c", count])
    shown = b""
    while b"ready" not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    while not re.search(rb"heard \d", shown):
        shown += os.read(terminal, 1000)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"heard 1" in shown
    assert os.waitstatus_to_exitcode(status) == 0


def test_stopping_and_continuing_stops_and_continues_the_script() -> None:
    """What Ctrl-Z sends to the group, and what `fg` sends."""
    process = subprocess.Popen(
        [PYTHON, "-m", "fanin", "run", "--no-report", "--", PYTHON, "-c", WAITING.format(names=("SIGTERM",))],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    # A session's leader has an orphaned group, whose members a terminal's stop does not reach: so SIGSTOP.
    os.killpg(process.pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    os.killpg(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, out) == (9, "SIGTERM\n")


# ── around it ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_command_that_is_not_there_ends_as_in_a_shell() -> None:
    assert fanin_run("no-such-command-anywhere", "x")[::2] == (
        127,
        "error: command not found: no-such-command-anywhere\n",
    )


def test_a_command_that_cannot_run_ends_as_in_a_shell(here: Path) -> None:
    (here / "data.txt").write_text("text")
    assert fanin_run("./data.txt")[::2] == (126, "error: cannot run ./data.txt: Permission denied\n")


def test_a_trial_that_exists_is_refused_before_anything_runs(here: Path) -> None:
    (here / "there").mkdir()
    code, out, err = fanin_run(PYTHON, "-c", "print('ran')", options=("--trial", "there"))
    assert (code, out) == (2, "")
    assert "where     there" in err


def test_where_nothing_was_watched_it_says_why_that_may_be_and_keeps_the_exit_code() -> None:
    code, out, err = fanin_run(PYTHON, "-c", "print('out')", options=())
    assert (code, out) == (0, "out\n")
    assert err.startswith("UNDECIDED  nothing was watched")
    assert max(map(len, err.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "code", "how"),
    [
        ([PYTHON, "nothere.py"], 2, "with status 2"),
        ([PYTHON, "-c", "raise SystemExit(5)"], 5, "with status 5"),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM, "by SIGTERM"),
    ],
)
def test_of_a_command_that_fails_it_says_that_and_nothing_else(
    command: list[str], code: int, how: str
) -> None:
    ended, out, err = fanin_run(*command, options=())
    assert (ended, out) == (code, "")
    assert f"UNDECIDED  the command ended {how}, and no trial was written\n" in err
    assert "One of these" not in err


def test_the_script_may_change_its_folder() -> None:
    assert Path(launch.environment("runs/a", 1)["FANIN_TRIAL"]) == Path.cwd() / "runs" / "a"
    assert launch.environment("s3://bucket/a", 1)["FANIN_TRIAL"] == "s3://bucket/a"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "src/train.py", "--out", "x.py"], "train"),
        (["python", "-m", "app.train", "x"], "app.train"),
        (["torchrun", "--nproc-per-node=2", "train.py"], "train"),
        (["torchrun", "--nproc-per-node=2", "-m", "app.train"], "app.train"),
        (["bash", "jobs/night run.sh"], "night_run"),
        (["/usr/local/bin/train", "1"], "train"),
        (["python", "..py"], "run"),
    ],
)
def test_the_trial_is_named_after_the_script(command: list[str], name: str) -> None:
    assert launch.default_trial(command, datetime(2026, 3, 1, 9, 30)) == f"runs/{name}-20260301-093000"
