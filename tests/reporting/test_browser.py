"""The page in a real browser: what it asks for, says, shows and lets one do. Skipped where there is no Chromium."""

import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from reporting import fabricated
from reporting.test_page_shift import few_methods

from pipeline.reporting import html, interactive

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to show the page in")
PHONE, DESKTOP = 360, 1280
# What a reader cannot do without; axe's names (dequeuniversity.com/rules/axe).
RULES = """color-contrast link-name button-name image-alt aria-allowed-attr aria-valid-attr-value
scrollable-region-focusable duplicate-id-aria th-has-data-cells list definition-list heading-order region
nested-interactive aria-hidden-focus document-title html-has-lang summary-name""".split()
METRICS = ["auroc", "auroc_minus_scratch", "auroc_minus_no_pixels", "sensitivity", "calibration_slope", "ppv"]
# Text outside the window, or cut off by its own box; what scrolls sideways may be wider.
CUT = """() => [...document.querySelectorAll("main *, header *")].filter((element) => {
    if (element.closest(".scroll, .aside, pre, svg, .plot") || !element.textContent.trim()) return false;
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (!box.width) return false;
    const hides = ["hidden", "clip"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1;
    return hides || box.right > innerWidth + 1 || box.left < -1;
}).map((element) => element.outerHTML.slice(0, 120))"""
OUTSIDE = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
    const frame = plot.getBoundingClientRect();
    return [...plot.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
    }).map((text) => text.textContent);
})"""
# The cells' values of a column, body by body.
VALUES = """(table, column) => [...table.tBodies].map((body) => [...body.rows].filter((row) => row.cells[column]).map(
    (row) => row.cells[column].querySelector("data")?.getAttribute("value") ?? ""))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with all sections, few methods, and figures with hover values over one plain picture."""
    buffer = BytesIO()
    Image.new("L", (1664, 900), 255).save(buffer, "png")
    frames = few_methods()
    frames["metrics"] = frames["metrics"][frames["metrics"]["metric"].isin(METRICS)]
    for name in ("runs", "curves", "thresholds"):
        frames[name] = frames[name][frames[name]["run"].str.endswith("seed0")]
    who = fabricated.study().frames["table_one"]
    frames |= {"flow": fabricated.study().frames["flow"], "table_one": who[who["site"] == "north"]}
    study = fabricated.study(frames=frames, notice="A notice")
    names = [
        name
        for name in interactive.specs(study)
        if not name.startswith(("abstention", "costs", "forest", "reliability"))
    ]
    page = html.page(study, dict.fromkeys(names, buffer.getvalue()))
    path = tmp_path_factory.mktemp("browser") / "index.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., tuple[Page, list[str]]]]:
    """Open the page at a width; gives it and what it asked for of the network, or complained of."""
    contexts = []

    def opened(width: int, **options: Any) -> tuple[Page, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        return open_in(context, address)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def desktop(browser: Browser, address: str) -> Iterator[tuple[Page, list[str]]]:
    """One page for several tests, with what it asked for and complained of."""
    context = browser.new_context(viewport={"width": DESKTOP, "height": 900}, reduced_motion="reduce")
    yield open_in(context, address)
    context.close()


def open_in(context: BrowserContext, address: str) -> tuple[Page, list[str]]:
    """The page, and a list of its requests and complaints."""
    page, told = context.new_page(), []
    page.on("request", lambda request: None if request.url.startswith("data:") else told.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(address)
    return page, told


def unfold(page: Page) -> None:
    """Open all that is folded, and wait until all figures with hover values are drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for figure in page.locator("figure[data-live]").all():
        figure.evaluate("(element) => element.scrollIntoView()")
        figure.locator(".live .main-svg").first.wait_for(timeout=20_000)


@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESKTOP, True)])
def test_quiet_fits_and_can_be_read(visit: Callable[..., tuple[Page, list[str]]], address: str, width: int, dark: bool):
    page, told = visit(width, color_scheme="dark" if dark else "light", bypass_csp=True)  # axe is a script from outside
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    assert page.evaluate(OUTSIDE) == []
    assert told == [address]
    page.add_script_tag(path=AXE_FILE_PATH)
    # Tables look alike, and so do their bodies and rows; in the dark it is the colours that are others.
    alike = [f"#{name} table" for name in ("hospitals", "subgroups", "composition", "funnel", "training")]
    alike += ["tbody tr:nth-child(n + 3)", "tbody:nth-of-type(n + 3)"]
    include, rules = (["header", "#summary", "#verdict", "#leakage"], RULES[:1]) if dark else (["html"], RULES)
    found = page.evaluate(
        "([include, exclude, runOnly]) => axe.run({ include, exclude }, { runOnly })",
        [[[part] for part in include], [[part] for part in alike], rules],
    )
    assert found["passes"]
    assert [(v["id"], [node["html"][:150] for node in v["nodes"][:5]]) for v in found["violations"]] == []


def test_hover_tells_the_cell(desktop: tuple[Page, list[str]]):
    page, told = desktop
    figure = page.locator("#verdict figure").first
    figure.evaluate("(element) => element.scrollIntoView()")
    point = figure.locator(".plot .points path").first
    point.wait_for(timeout=20_000)
    hover = figure.locator(".hoverlayer text").first
    for _ in range(40):  # other figures may still be moving this one
        box = point.bounding_box()
        assert box
        page.mouse.move(box["x"] - 20, box["y"])
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(250)
        if hover.count():
            break
    first = page.evaluate(
        "JSON.parse(document.querySelector('#verdict figure script').textContent).panels[0].traces[0]"
    )
    assert f"Difference {first['shown']['difference'][0]}" in hover.text_content()
    figure.get_by_role("button", name="Show as a picture").click()
    assert figure.locator(".still").is_visible()
    assert not figure.locator(".live").is_visible()
    figure.get_by_role("button", name="Show with hover values").click()
    assert len(told) == 1  # the policy that lets two scripts run has let them run


def test_tables_sort_by_mouse_and_key(desktop: tuple[Page, list[str]]):
    page, _ = desktop
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    table = page.locator("#choice table", has_text="Rungs of the search").first
    head = table.locator("th", has_text="Loss on validation").first
    as_was = table.evaluate(VALUES, 3)
    assert len(as_was[0]) > 1
    button = head.get_by_role("button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert table.evaluate(VALUES, 3) == [sorted(body, key=float) for body in as_was]
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert table.evaluate(VALUES, 3) == [sorted(body, key=float, reverse=True) for body in as_was]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert table.evaluate(VALUES, 3) == as_was


@pytest.mark.parametrize("clicks", [1, 2])
def test_what_is_not_defined_sorts_last_and_groups_keep_their_heads(desktop: tuple[Page, list[str]], clicks: int):
    page, _ = desktop
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    table = page.locator("#hospitals table, #calibration table").last
    head = table.locator("th", has_text="Calibration slope")
    while head.get_attribute("aria-sort") != ["ascending", "descending"][clicks - 1]:
        table.locator("th", has_text="Calibration slope").get_by_role("button").click()
    bodies = table.evaluate(VALUES, 1)
    assert [body for body in bodies if "" in body]  # as the fabricated study has it, at one hospital
    for body in bodies:
        known = [value for value in body if value]
        assert body == sorted(known, key=float, reverse=clicks == 2) + [""] * (len(body) - len(known))
    assert table.evaluate("(table) => [...table.tBodies].every((body) => body.rows[0].classList.contains('group'))")


def test_without_a_script_pictures_and_tables_stand(visit: Callable[..., tuple[Page, list[str]]]):
    page, told = visit(PHONE, java_script_enabled=False)
    assert page.locator(".still").first.is_visible()
    assert page.locator(".live").count() == 0
    page.locator("#efficiency summary").first.click()
    assert page.locator("#efficiency table").first.is_visible()
    assert len(told) == 1


def test_print_shows_pictures_and_what_is_folded(desktop: tuple[Page, list[str]]):
    page, _ = desktop
    figure = page.locator("#verdict figure").first
    figure.evaluate("(element) => element.scrollIntoView()")
    figure.locator(".live .main-svg").first.wait_for(timeout=20_000)
    page.emulate_media(media="print")
    assert figure.locator(".still").is_visible()
    assert not figure.locator(".live").is_visible()
    table = page.locator("#efficiency table").first
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert table.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not table.is_visible()


def test_the_test_of_cut_text_sees_a_planted_one(visit: Callable[..., tuple[Page, list[str]]], tmp_path: Path):
    page, _ = visit(PHONE)
    page.evaluate("document.querySelector('h2').style.width = '2000px'")
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE
