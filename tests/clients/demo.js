// The page of GET /demo in headless Chromium: prices move, the panels say what they should in their colours, and all of it comes
// back after a restart of the gateway. Leaves a screenshot at --screenshot.
"use strict";
const assert = require("node:assert/strict");
const { chromium } = require("playwright-core");
const path = require("node:path");
const { args, check, DEADLINE_MS } = require("./common.js");
const { Command, Gateway } = require("./gateway.js");

const SYMBOLS = 500;
const QUOTES_PER_S = 2000;
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
]; // prettier-ignore

/** Polls the page until `condition`, run there, is true. */
const until = (page, condition, argument) => page.waitForFunction(condition, argument, { timeout: DEADLINE_MS, polling: 50 });
const text = (page, selector) => page.locator(selector).innerText();
const number = async (page, selector) => Number.parseInt((await text(page, selector)).replaceAll(",", ""), 10);
const connected = (page) => until(page, () => document.getElementById("state").innerText === "connected");
const bids = (page) => page.$$eval("#rows tr", (rows) => rows.slice(0, 15).map((row) => row.cells[1].innerText));

/** Of a panel's lines: their text, and their colour as it is painted. */
const lines = (page, pane) =>
  page.$$eval(`#${pane} div`, (all) => all.map((line) => [line.innerText, getComputedStyle(line).color]));
const saidLine = (page, pane, wanted, times = 1) =>
  until(
    page,
    ([id, line, n]) => [...document.querySelectorAll(`#${id} div`)].filter((div) => div.innerText === line).length >= n,
    [pane, wanted, times],
  );

/** What no good page does: errors of its own, errors on the console, requests to anybody else. */
function watch(page, origin) {
  const state = { faults: [], outage: false };
  page.on("pageerror", (error) => state.faults.push(`page error: ${error.stack}`));
  page.on("console", (message) => {
    // The browser itself tells of each attempt while nobody listens.
    const isOutage = state.outage && /WebSocket connection to .* failed/.test(message.text());
    if (["error", "warning"].includes(message.type()) && !isOutage) state.faults.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(`${origin}/`) && !request.url().startsWith("data:")) state.faults.push(`asks ${request.url()}`);
  });
  return state;
}

async function pricesMove(page) {
  await connected(page);
  await until(page, (n) => document.getElementById("live").innerText === `${n}`, SYMBOLS);
  const before = await bids(page);
  await until(
    page,
    (old) => [...document.querySelectorAll("#rows tr")].slice(0, 15).filter((row, i) => row.cells[1].innerText !== old[i]).length >= 10,
    before,
  );
  for (const bid of await bids(page)) assert.match(bid, /^\d+\.\d\d$/);
  // A tick up and a tick down, each in its colour.
  const flash = (way) => until(page, (kind) => document.querySelector(`td.price.${kind}`), way);
  await Promise.all([flash("up"), flash("down")]);
  await until(page, () => Number.parseInt(document.getElementById("rate").innerText.replaceAll(",", ""), 10) > 100);
  const [p50, p99] = [await text(page, "#p50"), await text(page, "#p99")];
  assert.match(p50, /^[\d,]+ ms$/);
  assert.match(p99, /^[\d,]+ ms$/);
  const ms = (shown) => Number.parseInt(shown.replaceAll(",", ""), 10);
  assert.ok(ms(p50) <= ms(p99), `${p50} ${p99}`);
  assert.equal(await text(page, "#order"), "");
}

async function echoPanel(page) {
  const blue = "rgb(0, 0, 255)";
  await saidLine(page, "echo-output", "CONNECTED");
  const beat = "RESPONSE: heartbeat";
  const beats = (await lines(page, "echo-output")).filter(([line]) => line === beat).length;
  await saidLine(page, "echo-output", beat, beats + 1);
  // The third after one is two seconds or more later, but for what the page is late by itself.
  const from = Date.now();
  await saidLine(page, "echo-output", beat, beats + 4);
  assert.ok(Date.now() - from > 2000, `three heartbeats in ${Date.now() - from} ms`);
  for (const [way, word] of [["click", "hello"], ["Enter", "wörld 价🙂"]]) {
    await page.fill("#echo input", word);
    if (way === "click") await page.click("#echo button:has-text('send')");
    else await page.press("#echo input", way);
    assert.equal(await page.inputValue("#echo input"), "");
    await saidLine(page, "echo-output", `RESPONSE: ${word}`);
    const said = (await lines(page, "echo-output")).filter(([line]) => line.endsWith(word));
    assert.deepEqual(said.map(([line]) => line), [`SENT: ${word}`, `RESPONSE: ${word}`]);
    assert.equal(said[1][1], blue);
    assert.notEqual(said[0][1], blue);
  }

  await page.click("#echo button:has-text('close')");
  await saidLine(page, "echo-output", "DISCONNECTED");
  // `send` opens it again, and keeps what was typed.
  await page.fill("#echo input", "again");
  await page.click("#echo button:has-text('send')");
  await saidLine(page, "echo-output", "CONNECTED", 2);
  assert.equal(await page.inputValue("#echo input"), "again");
  await page.click("#echo button:has-text('send')");
  await saidLine(page, "echo-output", "RESPONSE: again");
}

/** The gateway's gauge of subscriptions: neither JOIN nor LEAVE has an answer. */
async function subscriptions(gateway) {
  const metrics = await (await fetch(`http://${gateway.http}/metrics`)).text();
  const values = [...metrics.matchAll(/^fanwire_subscriptions(?:\{.*\})? (\d+)/gm)].map(([, value]) => Number(value));
  assert.ok(values.length > 0, "no gauge of subscriptions");
  return values.reduce((x, y) => x + y);
}

async function roomPanel(page, gateway) {
  const asks = (type) => `SENT: {"type":"${type}","data":{"room":"lobby"}}`;
  const push = async (topic, message) => {
    const body = JSON.stringify({ topic, data: Buffer.from(JSON.stringify(message)).toString("base64") });
    const answer = await fetch(`http://${gateway.http}/v1/pushData`, { method: "POST", body });
    assert.equal(answer.status, 200);
  };
  const grown = async (by, from) => {
    const end = Date.now() + DEADLINE_MS;
    while ((await subscriptions(gateway)) !== from + by) assert.ok(Date.now() < end, `subscriptions did not change by ${by}`);
  };
  const before = await subscriptions(gateway);
  await page.fill("#room input", "lobby");
  await page.click("#room button:has-text('JOIN')");
  await saidLine(page, "room-output", "CONNECTED");
  await saidLine(page, "room-output", asks("JOIN"));
  await grown(2, before); // The room, and what goes to everyone.
  await push("lobby", { msg: "hi" });
  await saidLine(page, "room-output", 'RESPONSE: {"msg":"hi"}');
  await page.click("#room button:has-text('LEAVE')");
  await saidLine(page, "room-output", asks("LEAVE"));
  await grown(1, before);
  await push("lobby", "not for us");
  await push("", "to everyone");
  await saidLine(page, "room-output", 'RESPONSE: "to everyone"');
  assert.ok(!(await lines(page, "room-output")).some(([line]) => line.includes("not for us")));
  await page.click("#room button:has-text('close')");
  await saidLine(page, "room-output", "DISCONNECTED");
  // JOIN opens it again.
  await page.click("#room button:has-text('JOIN')");
  await saidLine(page, "room-output", "CONNECTED", 2);
}

async function comesBack(page, gateway, state) {
  const red = "rgb(208, 0, 0)";
  state.outage = true;
  await gateway.stop();
  await until(page, () => document.getElementById("state").innerText === "reconnecting");
  await until(page, () => document.querySelector(".prices").classList.contains("stale"));
  await saidLine(page, "echo-output", "DISCONNECTED", 2);
  const refused = `ERROR: no connection to ws://${gateway.subscribers}/demo/ws`;
  await saidLine(page, "echo-output", refused);
  assert.equal((await lines(page, "echo-output")).find(([line]) => line === refused)[1], red);
  await gateway.startAgain();
  await pricesMove(page);
  state.outage = false;
  assert.ok((await number(page, "#reconnects")) >= 1);
  await until(page, () => !document.querySelector(".prices").classList.contains("stale"));
  await saidLine(page, "echo-output", "CONNECTED", 3);
}

async function main(a) {
  const gateway = await Gateway.start(a.binary);
  const origin = `http://${gateway.subscribers}`;
  const market = ["--simulate", `${SYMBOLS}`, "--rate", `${QUOTES_PER_S}`];
  const publisher = new Command(a.binary, ["pub", ...market, "--grpc", gateway.grpc]);
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", headless: true, args: FLAGS });
  try {
    const open = async (options) => {
      const page = await (await browser.newContext(options)).newPage();
      page.setDefaultTimeout(DEADLINE_MS);
      const state = watch(page, origin);
      const answer = await page.goto(`${origin}/demo`);
      assert.equal(answer.status(), 200);
      return { page, state };
    };
    const { page, state } = await open({ viewport: { width: 1280, height: 720 }, colorScheme: "light" });
    await check("prices move", SYMBOLS, () => pricesMove(page));
    await check("echo panel", 4, () => echoPanel(page));
    await check("room panel", 2, () => roomPanel(page, gateway));
    await check("screenshot", 1, async () => {
      const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const light = await background();
      // Without motion the colours are dark at once.
      await page.emulateMedia({ colorScheme: "dark", reducedMotion: "reduce" });
      assert.notEqual(await background(), light);
      const size = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]);
      assert.deepEqual(size, [1280, 720]);
      await page.screenshot({ path: a.screenshot });
      await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" });
    });
    await check("restart", 1, () => comesBack(page, gateway, state));
    await check("on a phone", SYMBOLS, async () => {
      const phone = await open({ viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true });
      await pricesMove(phone.page);
      assert.equal(await phone.page.evaluate(() => document.documentElement.scrollWidth), 390);
      state.faults.push(...phone.state.faults);
    });
    assert.deepEqual(state.faults, []);
  } catch (error) {
    // What the pages looked like, beside the logs.
    const pages = browser.contexts().flatMap((context) => context.pages());
    const failed = (i) => path.join(process.env.CLIENT_LOGS, `failed-${i}.png`);
    await Promise.allSettled(pages.map((page, i) => page.screenshot({ path: failed(i), timeout: DEADLINE_MS })));
    throw error;
  } finally {
    await browser.close();
  }
  assert.equal(await publisher.stop(), 0, publisher.output.stderr);
  await gateway.stop();
}

main(args());
