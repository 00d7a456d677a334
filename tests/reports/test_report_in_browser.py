"""The page in a real browser: it fits its window, its script runs and complains of nothing, and filters and sorts."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from tests.support.run_records import hostile_record, run_record
from ulmfit_pipe.reports.comparison import compare_runs
from ulmfit_pipe.reports.run_report import run_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium (Debian's package is called chromium)"),
]

# Does what a person does and leaves what came of it in the page; the page's own policy would not let it run.
ACTIONS = """<script>
const shown = () => [...document.querySelectorAll("#texts li")].filter((each) => !each.hidden);
const press = (selector) => document.querySelector(selector).click();
const found = {};
found.width = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
if (document.getElementById("texts")) {
  found.first = shown().length;
  press("[data-list=unsure]");
  found.unsure = shown().map((each) => Number(each.querySelector(".score").textContent));
  const cell = document.querySelector(".matrix td.wrong button");
  cell?.click();
  found.cell = [cell?.dataset.cell, [...new Set(shown().map((each) => each.dataset.cell))]];
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  const search = document.getElementById("search");
  search.value = shown()[0].querySelector(".text").textContent.trim().toUpperCase();
  search.dispatchEvent(new Event("input"));
  found.search = [search.value.toLowerCase(), shown().map((each) => each.querySelector(".text").textContent.trim())];
}
const table = document.querySelector("table.sortable");
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
table.querySelectorAll("thead button")[1].click();
found.falling = column();
table.querySelectorAll("thead button")[1].click();
found.rising = column();
parent.document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


def opened(tmp_path, page):
    """Return the page's elements after its script, and what it wrote to the console."""
    file = tmp_path / "page.html"
    file.write_bytes(page)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        "--window-size=1400,900",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--dump-dom",
        f"file://{file}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def acted(tmp_path, page, *, width=1280):
    """Return what the actions found on a copy of the page without its policy, in a frame of a width."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.decode("utf-8"))
    content = escape(free.replace("</body>", f"{ACTIONS}</body>"))
    frame = f'<!DOCTYPE html><pre id="found"></pre><iframe width="{width}" height="900" srcdoc="{content}"></iframe>'
    source, console = opened(tmp_path, frame.encode())
    assert console == []
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', source, re.S).group(1)))


def test_the_script_runs_under_the_page_s_own_policy_and_complains_of_nothing(tmp_path):
    source, console = opened(tmp_path, run_report(run_record()))
    assert console == []
    assert re.search(r'<p class="note" id="shown" aria-live="polite">\d+ texts</p>', source)


def test_lists_cells_search_and_columns_do_what_they_say(tmp_path):
    found = acted(tmp_path, run_report(run_record(names=("bad", "fair", "good"), rows=90)))
    assert found["first"] == 10
    assert found["unsure"] == sorted(found["unsure"]) and len(found["unsure"]) == 10
    assert found["cell"][1] == [found["cell"][0]]
    assert found["search"][1] == [found["search"][0]]
    assert found["falling"] == sorted(found["rising"], reverse=True) != found["rising"]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(lambda: run_report(run_record()), id="a run"),
        pytest.param(lambda: run_report(hostile_record()), id="hostile labels"),
        pytest.param(lambda: run_report(run_record(names=tuple(map("class {}".format, range(20))), rows=300)), id="20"),
        pytest.param(lambda: compare_runs([run_record(name=f"run {i}", folder="x" * 90) for i in range(6)]), id="six"),
    ],
)
def test_nothing_is_wider_than_the_window(tmp_path, page, width):
    needed, there = acted(tmp_path, page(), width=width)["width"]
    assert needed <= there == width


def test_hostile_texts_run_nothing_in_a_browser(tmp_path):
    source, console = opened(tmp_path, run_report(hostile_record()))
    assert console == []  # where the browser reports a script that the policy stops
    assert source.count("<script>") == 1
