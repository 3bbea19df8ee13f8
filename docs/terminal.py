"""What commands look like on a terminal, as pictures: `python docs/terminal.py`, with tmux and a Chromium on the PATH,
and Pillow.

Commands run in a real terminal (tmux), so that width, colours and progress are decided as for a reader; its screen is
captured and drawn in a light and a dark theme. Without arguments docs/terminal.png is written, which README and
documentation show; `--all FOLDER` writes every command at 80 and 120 columns in both themes, to be looked at.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).parent
ROWS, SECONDS, COLORS = 160, 300, 128
SOCKET = "fanin-pictures"
"""Of a tmux server of our own, so that nobody's session is touched."""

DEEP = '''
import torch
from torch import nn


def build():
    """500 layers, drawn soundly but for four."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(499) for layer in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 10))
    for place in range(0, 998, 2):
        nn.init.orthogonal_(model[place].weight, gain=2**0.5)
        nn.init.zeros_(model[place].bias)
    for place in (500, 502, 504, 506):
        nn.init.normal_(model[place].weight, std=0.004)
    inputs = torch.randn(64, 64)
    return model, (inputs, inputs[:, :10].argmax(dim=1)), nn.CrossEntropyLoss()
'''

VIEWS = {
    "check": "fanin check examples/digits.py:default_weights",
    "healthy": "fanin check examples/digits.py:he_normal",
    "check-500": "fanin check deep.py:build",
    "repair": "fanin check examples/digits.py:one_bad_layer --diff --budget 400",
    "demo": "fanin demo",
    "run": "fanin run --trial runs/exp1 -- python examples/digits.py default_weights",
    "judge": "fanin judge runs/exp1",
    "ls": "fanin trial ls; echo; fanin trial show runs/exp1",
    "errors": "fanin check nothing.py:build; echo; fanin judge nowhere; echo; fanin check examples/digits.py:nobody;"
    " echo; fanin explain FAN999; echo; fanin check examples/digits.py:he_normal -o report.doc; echo; fanin chek",
    "explain": "fanin explain FAN411",
    "help": "fanin --help; fanin check --help",
    "rules": "fanin rules",
    "plain": "NO_COLOR=1 fanin check examples/digits.py:default_weights",
}
"""Name -> what is typed. Later ones use what earlier ones leave."""

LIGHT = TerminalTheme(
    (255, 255, 255),
    (31, 35, 40),
    [(36, 41, 47), (207, 34, 46), (17, 99, 41), (154, 103, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131),
     (110, 119, 129)],
    [(87, 96, 106), (164, 14, 38), (26, 127, 55), (191, 135, 0), (33, 139, 255), (164, 117, 249), (49, 146, 170),
     (140, 149, 159)],
)  # fmt: skip
DARK = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (210, 168, 255),
     (86, 212, 221), (255, 255, 255)],
)  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}
"""GitHub's, whose sixteen colours can be read on white and on black."""

PAGE = """<style>body {{ margin: 0; background: {background}; }} pre {{ margin: 0; padding: 14px 18px;
width: max-content; color: {foreground}; background: {background};
font: 14px/1.3 "DejaVu Sans Mono", Menlo, Consolas, monospace; }} {stylesheet}</style>
<pre>{code}</pre>"""


def tmux(*words: str) -> str:
    """Ask our tmux."""
    asked = ["tmux", "-L", SOCKET, *words]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def captured(line: str, columns: int, folder: Path) -> str:
    """The screen after a command, with its colours."""
    shown = f"cd {folder}; printf '$ %s\\n' {line!r}; {line}"
    tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(ROWS), "bash", "--norc")
    tmux("set-option", "-g", "remain-on-exit", "on")
    tmux("set-option", "-g", "status", "off")
    tmux("resize-window", "-x", str(columns), "-y", str(ROWS))
    tmux("respawn-pane", "-k", f"PATH={folder / 'bin'}:$PATH bash --norc -c {_quoted(shown)}")
    end = time.monotonic() + SECONDS
    while tmux("display-message", "-p", "#{pane_dead}").strip() != "1" and time.monotonic() < end:
        time.sleep(0.2)
    screen = tmux("capture-pane", "-e", "-p", "-S", "-", "-E", "-")
    tmux("kill-server")
    kept = [text for text in screen.splitlines() if not Text.from_ansi(text).plain.startswith("Pane is dead")]
    return "\n".join(kept).rstrip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def drawn(browser: Browser, screen: str, columns: int, theme: TerminalTheme) -> Image.Image:
    """A screen as a picture."""
    with open("/dev/null", "w") as nowhere:
        console = Console(
            record=True, width=columns, file=nowhere, force_terminal=True, color_system="standard"
        )
        for line in AnsiDecoder().decode(screen):  # at once, since a style goes on from line to line
            console.print(line, soft_wrap=True)
    page = browser.new_page(viewport={"width": 1400, "height": 400}, device_scale_factor=1.5)
    page.set_content(console.export_html(theme=theme, code_format=PAGE, inline_styles=True))
    image = Image.open(BytesIO(page.locator("pre").screenshot())).convert("RGB")
    page.close()
    return image


def furnished(folder: Path) -> Path:
    """A folder with examples, and with `fanin` and `python` on the path."""
    shutil.copytree(HERE.parent / "examples", folder / "examples")
    (folder / "deep.py").write_text(DEEP, encoding="utf-8")
    (folder / "bin").mkdir()
    ours = f"{sys.executable} -c 'import sys; sys.argv[0] = \"fanin\"; from fanin.cli import main; main()'"
    for name, start in (("fanin", ours), ("python", sys.executable)):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


def take_all(browser: Browser, place: Path, names: list[str], folder: Path) -> None:
    """Every command, at both widths, in both themes."""
    place.mkdir(parents=True, exist_ok=True)
    for columns in (80, 120):
        shutil.rmtree(folder / "runs", ignore_errors=True)
        for name in names:
            screen = captured(VIEWS[name], columns, folder)
            (place / f"{name}-{columns}.txt").write_text(screen + "\n", encoding="utf-8")
            for scheme, theme in THEMES.items():
                drawn(browser, screen, columns, theme).save(place / f"{name}-{columns}-{scheme}.png")


def main() -> None:
    """Write terminal.png, or all pictures to a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    parser.add_argument("names", nargs="*", choices=[*VIEWS, []], help="with --all: only these")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = furnished(Path(scratch))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if options.all:
            take_all(browser, options.all.absolute(), options.names or list(VIEWS), folder)
        else:
            picture = drawn(browser, captured(VIEWS["check"], 80, folder), 80, DARK)
            picture.quantize(COLORS).save(HERE / "terminal.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
