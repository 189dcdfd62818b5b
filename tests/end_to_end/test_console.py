"""The console in a real browser, at a desk's width and at a phone's, in front of the real server.

With ADAPTERD_SCREENSHOTS=FOLDER it leaves pictures there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import chromium
from playwright.async_api import Browser, ConsoleMessage, Page, ViewportSize, async_playwright, expect

from server.app import App
from server.config import ServerConfig
from server.tenants import digest_of

ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("ADAPTERD_SCREENSHOTS", "")
DESK = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=390, height=844)
NARROW = ViewportSize(width=360, height=740)
PATIENCE_MS = 30_000  # machines that run tests are busy
VIEWS = ("live", "adapters", "tenants", "playground")
DEMO = ("snips-intent", "snips-slots", "snips-topics", "sst2-sentiment")
TENANTS = """
[acme]
credentials = ["sha256:{acme}"]
shared = ["intent", "base"]

[operator]
credentials = ["sha256:{operator}"]
adapters = ["*"]
can_observe = true
"""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    program, environment = chromium()
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, env={**os.environ, **environment}, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, viewport: ViewportSize, scheme: str = "light", status: int = 0
) -> AsyncIterator[Page]:
    """A page that must not log any error or warning, but for answers of this status."""
    logged: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and f"status of {status} " not in message.text:
            logged.append(message.text)

    context = await browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    page.on("console", hear)
    page.on("pageerror", lambda error: logged.append(str(error)))
    yield page
    await context.close()
    assert logged == []


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with opened(browser, DESK) as page:
        yield page


async def show(page: Page, url: str, view: str) -> None:
    """Opens a view and waits for the server's first numbers."""
    await page.goto(f"{url.rstrip('/')}/#{view}")
    await expect(page.locator("#status-text")).to_have_text("live")


async def picture(page: Page, name: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=Path(PICTURES) / f"console-{name}.png")


@asynccontextmanager
async def load(url: str, num_callers: int = 4) -> AsyncIterator[None]:
    """Callers that ask for all demo adapters in turn, until the block ends."""
    cases = itertools.cycle([json.loads(line) for line in (ROOT / "examples" / "demo.jsonl").read_text().splitlines()])
    has_ended = False

    def ask() -> None:
        case = next(cases)
        body = json.dumps({"adapter": case["adapter"], "text": case["text"]}).encode()
        request = urllib.request.Request(
            f"{url.rstrip('/')}/console/predict", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_MS / 1000) as reply:
            reply.read()

    async def call() -> None:
        while not has_ended:
            await asyncio.get_running_loop().run_in_executor(callers, ask)

    with ThreadPoolExecutor(num_callers) as callers:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_callers):
                group.create_task(call())
            try:
                yield
            finally:
                has_ended = True


@pytest.mark.parametrize("viewport", [DESK, PHONE, NARROW], ids=["desk", "phone", "narrow"])
async def test_every_view_fits_its_width(console_url: str, browser: Browser, viewport: ViewportSize) -> None:
    async with opened(browser, viewport, "dark") as page:
        await show(page, console_url, "live")
        for view in VIEWS:
            await page.locator(f"nav [href='#{view}']").click()
            await expect(page.locator(f"#view-{view} h1")).to_be_visible()
            await expect(page.locator("nav [aria-current]")).to_have_text(view, ignore_case=True)
            if view == "playground":
                await expect(page.locator(".route").first).to_be_visible()
            wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await page.evaluate(wider) <= 0, view


async def test_live_numbers_move_under_load(console_url: str, page: Page) -> None:
    await show(page, console_url, "live")
    requests, tokens = (page.locator(".tile").nth(i) for i in range(2))
    async with load(console_url, num_callers=24 if PICTURES else 4):
        for tile in (requests, tokens):
            await expect(tile.locator(".tile-value")).not_to_have_text("0/s")
            await expect(tile.locator(".tile-value")).not_to_have_text("–")
        before = await requests.locator(".tile-detail").inner_text()
        await expect(requests.locator(".tile-detail")).not_to_have_text(before)
        await expect(requests.locator(".legend")).to_contain_text("OK")
        await expect(page.locator("#stages-window")).to_contain_text("last 10 s")
        await expect(page.locator("#tiers")).to_contain_text("Device4 adapters")
        await expect(page.locator("#busiest")).to_contain_text("snips-slots")
        if PICTURES:
            await page.wait_for_timeout(45_000)  # for charts worth looking at
            await picture(page, "live")
            await page.emulate_media(color_scheme="dark")
            await picture(page, "live-dark")
            await page.set_viewport_size(PHONE)
            await picture(page, "live-phone")


async def test_a_batch_tells_which_adapters_it_mixed(console_url: str, page: Page) -> None:
    await show(page, console_url, "live")
    async with load(console_url):
        await expect(page.locator("#batch-lead")).to_contain_text("in one forward pass")
        await page.locator(".batch").last.hover()
        lead = page.locator("#batch-lead")
        await expect(lead).to_contain_text("Batch ")
        held = await lead.inner_text()
        await expect(page.locator("#batch-mix .adapter").first).to_be_visible()
        await page.locator(".batch.told").focus()
        await page.keyboard.press("ArrowLeft")
        if await page.locator(".batch").count() > 1:
            await expect(lead).not_to_have_text(held)


async def test_adapters_are_filtered_and_a_card_opens(console_url: str, page: Page) -> None:
    await show(page, console_url, "adapters")
    names = page.locator("#adapters-table tbody code")
    for name in DEMO:
        await expect(names.get_by_text(name, exact=True)).to_be_visible()
    await picture(page, "adapters")
    await page.get_by_label("Name contains").fill("slots")
    await expect(names).to_have_text(["snips-slots"])
    await page.get_by_role("link", name="snips-slots").click()
    drawer = page.locator("#drawer")
    await expect(drawer).to_contain_text("token classification")
    await expect(drawer.locator(".card")).to_contain_text("0.9179")
    await expect(drawer.locator(".card table")).to_contain_text("reduction_factor=16")
    assert page.url.endswith("#adapters/snips-slots")
    await picture(page, "card")
    await page.keyboard.press("Escape")
    await expect(drawer).to_be_hidden()
    await page.get_by_label("Task").select_option("embedding")
    await expect(page.locator("#adapters-empty")).to_be_visible()


async def test_entities_are_highlighted_where_they_are(console_url: str, page: Page) -> None:
    await show(page, console_url, "playground")
    await page.get_by_role("button", name="Entities").click()
    marks = page.locator("mark.entity")
    await expect(marks.filter(has_text="paris")).to_contain_text("city")
    await expect(page.locator(".passage").first).to_contain_text("book a table for")
    await page.get_by_label("Text", exact=True).fill("😀 book a table in paris")  # beyond UTF-16
    await page.keyboard.press("Control+Enter")
    await expect(page.locator(".passage").first).to_contain_text("😀")
    assert [await mark.evaluate("node => node.firstChild.data") for mark in await marks.all()][-1] == "paris"


async def test_columns_are_compared_and_stand_in_the_url(console_url: str, page: Page) -> None:
    await show(page, console_url, "playground")
    await page.get_by_role("button", name="Side by side").click()
    columns = page.locator(".column")
    await expect(columns).to_have_count(3)
    await expect(columns.nth(0)).to_contain_text("AddToPlaylist")
    await expect(columns.nth(1).locator("mark.entity").first).to_be_visible()
    await expect(columns.nth(2).locator(".bars")).to_contain_text("playlist")
    await expect(page.locator("#compared")).to_contain_text("batch")
    await picture(page, "playground")
    await page.emulate_media(color_scheme="dark")
    await picture(page, "playground-dark")
    await page.reload()
    for number, name in enumerate(DEMO[:3]):
        await expect(columns.nth(number).locator("input")).to_have_value(name)
    await expect(page.get_by_label("Text", exact=True)).to_have_value(re.compile("sabrina salerno"))


async def test_embeddings_are_compared(console_url: str, page: Page) -> None:
    await show(page, console_url, "playground?a=base&a=base&text=one+text")
    await page.get_by_role("button", name="Run").click()
    await expect(page.locator("canvas.heat")).to_have_count(2)
    await expect(page.locator("#compared td").last).to_have_text("1.000")


async def test_a_composition_answers_once_for_each_member(console_url: str, page: Page) -> None:
    await show(page, console_url, "playground")
    await page.get_by_role("button", name="Composition").click()
    await expect(page.locator(".branch h3 code")).to_have_text(list(DEMO[:3]))
    await expect(page.locator(".branch").first).to_contain_text("GetWeather")
    await expect(page.locator(".branch mark.entity").first).to_be_visible()
    await picture(page, "composition")
    await page.set_viewport_size(PHONE)
    await picture(page, "playground-phone")


async def test_suggestions_complete_the_name_at_the_caret(console_url: str, page: Page) -> None:
    await show(page, console_url, "playground")
    field = page.get_by_role("combobox").first
    await field.fill("Parallel(snips-in")
    await expect(page.get_by_role("option")).to_have_count(1)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(field).to_have_value("Parallel(snips-intent")


async def test_what_the_server_says_is_text_and_never_markup(console_url: str, browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    async with opened(browser, DESK, status=400) as page:
        await show(page, console_url, f"playground?a={quote(name)}&text=hello")
        await page.get_by_role("button", name="Run").click()
        await expect(page.locator(".column .notice")).to_contain_text("INVALID_INPUT")
        await expect(page.locator(".column .notice")).to_contain_text("<img src=x")
        assert await page.locator("main img").count() == 0


class TestWithTenants:
    @pytest.fixture
    def config(self, config: ServerConfig, tmp_path: Path) -> ServerConfig:
        path = tmp_path / "tenants.toml"
        path.write_text(TENANTS.format(acme=digest_of("acme-token"), operator=digest_of("operator-token")))
        return replace(config, api=replace(config.api, tenants=str(path)))

    async def test_a_token_is_asked_for_refused_and_kept(self, app: App, browser: Browser) -> None:
        async with opened(browser, DESK, status=401) as page:
            await page.goto(f"http://127.0.0.1:{app.http_port}/")
            dialog = page.locator("#token")
            await expect(dialog).to_contain_text("adapterd token")
            await page.locator("[name=token]").fill("not-it")
            await page.get_by_role("button", name="Use this token").click()
            await expect(page.locator("#token-error")).to_contain_text("UNAUTHENTICATED")
            await page.locator("[name=token]").fill("operator-token")
            await page.keyboard.press("Enter")
            await expect(page.locator("#status-text")).to_have_text("live")
            await expect(dialog).to_be_hidden()
            await page.get_by_role("link", name="Tenants").click()
            await expect(page.locator("#tenants-body tbody th")).to_contain_text(["acme", "operator"])
            await page.reload()
            await expect(page.locator("#status-text")).to_have_text("live")
            await page.get_by_role("button", name="Forget token").click()
            await expect(dialog).to_be_visible()

    async def test_who_may_not_watch_the_server_may_use_adapters(self, app: App, browser: Browser) -> None:
        async with opened(browser, DESK, status=401) as page:
            await page.goto(f"http://127.0.0.1:{app.http_port}/")
            await page.locator("[name=token]").fill("acme-token")
            await page.keyboard.press("Enter")
            await expect(page.locator(".column")).to_have_count(2)
            await expect(page.locator(".column .route")).to_have_count(2)
            await page.get_by_role("link", name="Live", exact=True).click()
            await expect(page.locator("#notice")).to_contain_text("can_observe")
            await page.get_by_role("link", name="Adapters").click()
            await expect(page.locator("#adapters-table tbody code")).to_have_text(["intent"])
