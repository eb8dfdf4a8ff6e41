"""A real JupyterLab and a page of it in headless Chromium, with the hands and eyes of a reader."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import expect

PATIENCE = 30_000
"""Milliseconds after which what should have appeared has not."""
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextlib.contextmanager
def jupyter_lab(folder: Path):
    """The address of a server over a folder, with nothing of the user's own settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    home = folder / ".home"
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": token,
        "LabApp.user_settings_dir": home / "settings",
        "LabApp.workspaces_dir": home / "workspaces",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "server.log").open("w") as log:
        environment = {**os.environ, **places, "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "server.log")
            yield lambda page: f"http://127.0.0.1:{port}/{page}?token={token}"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _wait_for(address, server, log):
    for _ in range(PATIENCE // 200):
        with contextlib.suppress(OSError), urllib.request.urlopen(address):
            return
        if server.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"jupyter lab did not start:\n{log.read_text()}")


def write_notebook(path: Path, cells):
    """A notebook of code cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, path)


class NotebookPage:
    """A notebook that is open in a page."""

    def __init__(self, page):
        self.page = page
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)

    def run_all(self):
        """Run all cells by the menu, and wait until the last has run."""
        expect(self.page.get_by_text(re.compile(r"Python 3.* \| Idle"))).to_be_visible()
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt")
        expect(prompts.last).to_have_text(
            re.compile(r"\[\d+\]:"), timeout=4 * PATIENCE
        )  # torch is imported, models run

    def save(self, path):
        """Save by the button, and wait until the file has what the cells show."""
        self.page.get_by_role("button", name="Save and create checkpoint").click()
        deadline = time.monotonic() + PATIENCE / 1000
        while (
            path.read_text().count("widget-view+json") < self.page.locator(".jp-OutputArea-output.jp-widgets").count()
        ):
            assert time.monotonic() < deadline, f"not saved: {path}"
            self.page.wait_for_timeout(50)

    def explorer(self, cell):
        """What the cell of that number shows."""
        return Shown(self.page, self.page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output").first)


class Shown:
    """An explorer in the page."""

    def __init__(self, page, place):
        self.page, self.place = page, place

    def ready(self):
        """Scroll to it and wait until its work is done."""
        expect(self.place.get_by_role("status").last).to_contain_text("ready")
        expect(self.place.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        self.place.scroll_into_view_if_needed()
        return self

    def control(self, description):
        """The box of a control, by its description."""
        label = self.place.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(description)}$"))
        return self.place.locator(".jupyter-widgets, .widget-inline-hbox", has=label).last

    def slider(self, description):
        """The handle of a slider; takes the keyboard."""
        return self.control(description).locator(".noUi-handle")

    def readout(self, description):
        """What a slider says its value is."""
        return self.control(description).locator(".widget-readout").inner_text()

    def choose(self, description, option):
        """Choose from a menu."""
        self.control(description).locator("select").select_option(label=option)

    def figure(self, number=0):
        """One of its plotly figures."""
        return self.place.locator(".js-plotly-plot").nth(number)

    def look(self, script, figure=0):
        """A JavaScript expression of the plotly element `gd`, evaluated."""
        return self.figure(figure).evaluate(f"gd => {script}")

    def values(self, trace, name="z", figure=0):
        """Numbers that a trace draws, as nested lists."""
        rows = "v => v && v.length !== undefined && typeof v !== 'string' ? Array.from(v, plain) : v"
        return self.look(f"{{ const plain = {rows}; return plain(gd._fullData[{trace}].{name}); }}", figure)

    def until(self, script, figure=0):
        """Wait until a JavaScript expression of the plotly element `gd` holds; the figure may be replaced meanwhile."""
        guarded = f"(() => {{ try {{ return Boolean({script}) }} catch {{ return false }} }})()"
        deadline = time.monotonic() + PATIENCE / 1000
        while not self.look(guarded, figure):
            assert time.monotonic() < deadline, f"the page never came to: {script}"
            self.page.wait_for_timeout(50)

    def spot(self, panel, x, y, figure=0):
        """Where a place in a panel's own units is on the screen."""
        self.place.scroll_into_view_if_needed()
        axes = "" if panel == 1 else panel
        script = f"""(() => {{
            const x = gd._fullLayout.xaxis{axes}, y = gd._fullLayout.yaxis{axes}, box = gd.getBoundingClientRect();
            return [box.left + x._offset + x.d2p({x}), box.top + y._offset + y.d2p({y})];
        }})()"""
        return self.look(script, figure)

    def hover(self, panel, x, y, figure=0):
        """Move the pointer to a place in a panel, in two steps as a hand does."""
        left, top = self.spot(panel, x, y, figure)
        self.page.mouse.move(left + 2, top + 2)
        self.page.mouse.move(left, top, steps=3)

    def click(self, panel, x, y, *, figure=0, modifiers=()):
        """Click at a place in a panel, and move on at once."""
        self.hover(panel, x, y, figure)
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.down()
        self.page.mouse.up()
        for key in modifiers:
            self.page.keyboard.up(key)
        left, top = self.spot(panel, x, y, figure)
        self.page.mouse.move(left + 60, top + 5, steps=5)

    def drag(self, panel, places, figure=0, modifiers=()):
        """Draw through places in a panel with the button down."""
        spots = [self.spot(panel, x, y, figure) for x, y in places]
        self.page.mouse.move(*spots[0])
        self.page.wait_for_timeout(400)  # plotly takes a press soon after a click for half of a double click
        for key in modifiers:
            self.page.keyboard.down(key)
        self.page.mouse.down()
        for left, top in spots[1:]:
            self.page.mouse.move(left, top, steps=4)
        self.page.mouse.up()
        for key in modifiers:
            self.page.keyboard.up(key)

    def screenshot(self, path):
        """A picture of it."""
        self.place.screenshot(path=path)
