"""`reasoner view` as somebody with a browser and a keyboard meets it: the real command, headless Chromium."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from recorded import record, rollout

from reasoner.audit import audit_run
from reasoner.config import Config
from reasoner.types import Group, Task

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]
from browser import BROWSER, browser  # noqa: E402
from test_view_changes import evaluation  # noqa: E402

HOSTILE = "<img src=x onerror=document.body.append('OWNED')>"
LONG = 30_000  # tokens of a chain whose middle the page leaves out

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome (apt install chromium)"),
]


def group(index: int, step: int) -> Group:
    """Eight rollouts of one of three tasks; at step 4 the verifier takes 9 for whatever is right."""
    task = Task(f"t{index % 3}", f"{index % 3}+2=? {HOSTILE}", str(index % 3 + 2), "sum", 1.0)
    answer = 9 if step == 4 else index % 3 + 2
    right = rollout(task, rf"{index % 3}+2={answer};\boxed{{{answer}}}", True, step - 1)
    wrong = rollout(task, rf"{HOSTILE}\boxed{{7}}", False, step - 1)
    return Group(task, (*[right] * (1 + step), *[wrong] * (7 - step)), index)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    steps = [[group(10 * step + i, step) for i in range(6)] for step in range(1, 5)]
    long = Task("long", "count", "1", "count", 2.0)
    steps[-1].append(Group(long, (rollout(long, "x" * LONG, False, truncated=True),), 99))
    measured = {"problems": 10, "samples": 2, "response_tokens_mean": 20.0}
    evaluations = {step: {"held_out": measured | {"pass@1": step / 10}} for step in range(5)}
    run = record(tmp_path_factory.mktemp("runs") / "seen", steps, evaluations)
    evaluation(run, "embedded-sums-1a2b", {"a": [True, False], "b": [True, True]})
    evaluation(run, "step_000004-sums-3c4d", {"a": [True, True], "b": [True, False]})
    audit_run(run, Config())
    command = [sys.executable, "-m", "reasoner.cli", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def tab(address, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        page.open(address)
        page.until("run.steps.indexed === 4")
        yield page


@pytest.fixture
def page(tab):
    """The tab; whatever was done in it, no script failed and nothing but our server was asked."""
    tab.emulate("light")
    tab.errors.clear()
    yield tab
    assert tab.errors == []
    assert {urlsplit(url).hostname for url in tab.asked if url.startswith("http")} == {"127.0.0.1"}
    assert "OWNED" not in tab.evaluate("document.body.innerText").replace("append('OWNED')", "")


VIEWS = {
    "": ("What it learned", "Held-out"),
    "#/rollouts?status=wrong&family=sum": ("108 rollouts", r"\boxed{7}", "page 1 of 3"),
    "#/rollout?group=20&rollout=0&colour=ratio&token=4": ("ratio 0.90484", "probability"),
    "#/group?group=20": ("Group 20: 3 of 8 right", "rollout 7"),
    "#/task?id=t1": ("Task t1, at 4 steps", "Step 3: 8 of 16 right"),
    "#/changes": ("2 problems", "75.0 % → 75.0 %", "1 better", "1 worse", "-50.0"),
    "#/changes?split=held_out&task=b": ("Problem b", "embedded-sums-1a2b 1", "step_000004-sums-3c4d 1"),
    "#/audit": ("Audit of 193 rollouts", "constant answer", "30 flagged rollouts"),
    "#/rollouts?step=nonsense": ("expected a number or a range",),
    "#/nothing": ("There is no view nothing",),
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_drawn_and_rollouts_are_text(page, address, view):
    page.open(address + view)
    for text in VIEWS[view]:
        assert text.lower() in page.text.lower(), text
    page.errors[:] = [error for error in page.errors if "400 (Bad Request)" not in error]  # shown on the page


def test_digits_choose_views_and_a_slash_searches(page, address):
    page.open(address)
    for key, view in (("2", "#/rollouts"), ("3", "#/changes"), ("4", "#/audit"), ("1", "#/curves")):
        page.press(key)
        page.until(f"location.hash.startsWith('{view}') && main.dataset.view === '{view[2:]}'")
    page.press("/")
    page.until("document.activeElement.id === 'search'")
    assert page.hash == "#/rollouts?step=any"
    page.press("j", "1")  # in a field they are letters
    assert page.evaluate("document.activeElement.value") == "j1"
    page.press("Escape")
    assert page.evaluate("document.activeElement.id") != "search"
    page.press("?")
    assert page.evaluate("document.getElementById('help').open")
    page.press("1", "Escape")
    assert page.hash.startswith("#/rollouts") and not page.evaluate("document.getElementById('help').open")


def test_rows_pages_groups_and_colours_by_keys(page, address):
    page.open(address + "#/rollouts?step=any&sort=step")
    links = "[...document.querySelectorAll('a.row')].indexOf(document.activeElement)"
    page.press("j")
    assert page.evaluate(links) == 0
    page.press("j", "j", "k")
    assert page.evaluate(links) == 1
    page.press("n")
    page.until("location.hash.includes('page=1') && main.innerText.includes('page 2 of 4')")
    page.press("p")
    page.until("!location.hash.includes('page=') && main.innerText.includes('page 1 of 4')")
    page.press("j", "Enter")
    page.until("location.hash === '#/rollout?group=10&rollout=0' && main.dataset.view === 'rollout'")
    page.press("n")
    page.until("main.innerText.includes('rollout 2 of 8')")
    page.press("c")
    page.until("main.querySelector('[aria-pressed=true]').innerText === 'ratio'")
    assert "colour=ratio" in page.hash
    page.press("j", "j")
    assert page.hash.endswith("token=4") and "token 4" in page.evaluate(
        "main.querySelector('.readout').innerText"
    )
    page.press("g")
    page.until("location.hash === '#/group?group=10' && main.innerText.includes('Group 10: 2 of 8 right')")


def test_a_chart_leads_to_its_rollouts_without_a_mouse(page, address):
    page.open(address)
    page.press("j", "ArrowRight", "ArrowLeft")
    assert "step 3:" in page.evaluate("document.activeElement.querySelector('.on text').textContent")
    page.evaluate("draw()")  # as when the run goes on
    assert "step 3:" in page.evaluate("document.activeElement.querySelector('.on text').textContent")
    page.press("Enter")
    page.until("location.hash === '#/rollouts?step=3' && main.innerText.includes('48 rollouts')")


def test_a_filter_keeps_the_others_of_the_address(page, address):
    page.open(address + "#/rollouts?status=wrong,unparsed&truncated=0&waiting=0&sort=-tokens")
    page.evaluate(
        "family = document.querySelector('[name=family]'); family.value = 'sum';"
        "family.dispatchEvent(new Event('change'))"
    )
    page.until("location.hash.includes('family=sum')")
    asked = page.evaluate("[...new URLSearchParams(location.hash.split('?')[1])].sort()")
    assert asked == [
        ["family", "sum"],
        ["sort", "-tokens"],
        ["status", "wrong,unparsed"],
        ["truncated", "0"],
        ["waiting", "0"],
    ]


def test_tokens_of_a_long_chain_keep_their_numbers(page, address):
    """Of 30,003 tokens 10,003 in the middle are not on the page."""
    page.open(address + "#/rollout?group=99&rollout=0&token=25000")
    page.until("main.querySelector('.readout').innerText.includes('token 25000')")
    page.press("j")
    assert page.hash.endswith("token=25001")
    page.open(address + "#/rollout?group=99&rollout=0&token=15000")
    assert page.evaluate("main.querySelector('.tokens .on')") is None


#: Every visible text's colour against what is behind it, by WCAG 2.2: [ratio, text].
CONTRASTS = """
(() => {
  const read = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
    const v = c[i] / 255; return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
  const ground = (e) => e ? over(read(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255, 1];
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!own || style.visibility !== "visible" || !box.width || e.disabled || e.closest("script, noscript, .skip, .unseen")) continue;
    const svg = e.closest("svg"), back = ground(svg ? svg.parentElement : e);
    const [a, b] = [light(over(read(svg ? style.fill : style.color), back)), light(back)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()
"""  # noqa: E501


COLOURED = [f"#/rollout?group=20&rollout=0&colour={c}" for c in ("logprob", "ratio", "advantage", "version")]


@pytest.mark.parametrize(
    "view", ["", "#/rollouts?step=any", "#/changes", "#/audit", "#/group?group=20", *COLOURED]
)
def test_text_can_be_read_in_light_and_dark_and_on_a_phone(page, address, view):
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate(scheme)
        page.open(address + view)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 10
        assert contrasts[0][0] >= 4.5, (scheme, contrasts[:5])
    assert grounds[0] != grounds[1]
    page.emulate("dark", width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
