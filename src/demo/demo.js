// The page of GET /demo: quotes by Centrifugo's client library, the echo panel, and a room of go-push. All paths are relative, so
// that it works behind a prefix too. Quotes are taken as they come and painted once a frame; only rows that are seen are touched.
"use strict";

/** Those of `fanwire pub --simulate 500`. */
const SYMBOLS = symbols(500);
/** Below the gateway's default centrifugo.channels_per_connection_max. */
const CHANNELS_PER_CONNECTION = 125;
/** Arrival is told of the quotes of so many seconds. */
const WINDOW_S = 10;
/** Arrivals of this many ms and more count as this many. */
const ARRIVAL_MS_MAX = 10000;
const FLASH_MS = 160;
const LINES_MAX = 200;
/** A closed panel comes back after this long, unless it was closed by hand. */
const REOPEN_MS = 1000;

const $ = (id) => document.getElementById(id);
const url = (path) => new URL(path, location.href.replace(/^http/, "ws")).href;

/** The names that the simulated market gives. */
function symbols(count) {
  return Array.from({ length: count }, (_, i) => `S${String(i).padStart(3, "0")}`);
}

// --- Prices ---

/** One symbol: its last quote, and its row. Cells are text nodes, so that painting allocates no elements. */
function makeStock(symbol, index) {
  const row = document.createElement("tr");
  const cell = (kind) => {
    const td = document.createElement("td");
    td.className = kind;
    td.append("–");
    row.append(td);
    return td;
  };
  const [name, bid, ask, spread, change, quotes] = ["symbol", "price", "price", "muted wide", "change", "muted wide"].map(cell);
  name.firstChild.data = symbol;
  const cells = { bid, ask, spread, change, quotes };
  // `first`: the bid when the page was opened; `last`: which way it moved last; `came`: when, by performance.now().
  return { symbol, index, row, cells, quote: null, first: 0, last: 0, quotes: 0, came: 0, seen: false };
}

const stocks = SYMBOLS.map(makeStock);
const byRow = new Map(stocks.map((stock) => [stock.row, stock]));
/** What to paint in the next frame. */
const changed = new Set();
$("rows").append(...stocks.map((stock) => stock.row));

const seeing = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const stock = byRow.get(target);
    stock.seen = isIntersecting;
    if (isIntersecting) changed.add(stock);
  }
});
for (const stock of stocks) seeing.observe(stock.row);

const counts = { total: 0, live: 0, outOfOrder: 0, reconnects: 0, since: performance.now(), lastTotal: 0 };

/** What anybody may publish is not believed: a quote without its numbers is left out. */
function takeQuote(stock, quote) {
  if (![quote?.b, quote?.a, quote?.t].every(Number.isFinite)) return;
  counts.total += 1;
  if (stock.quote === null) {
    counts.live += 1;
    stock.first = quote.b;
  } else if (quote.n <= stock.quote.n && quote.t < stock.quote.t) {
    counts.outOfOrder += 1;
  }
  // Against the price before it: a quote that changes nothing keeps its colour.
  if (stock.quote && quote.b !== stock.quote.b) stock.last = Math.sign(quote.b - stock.quote.b);
  stock.quote = quote;
  stock.quotes += 1;
  stock.came = performance.now();
  // Whole milliseconds both, so that one clock never says that it came before it was sent.
  arrivals.take(Date.now() - Math.floor(quote.t));
  changed.add(stock);
}

const changeOf = (stock) => (stock.quote && stock.first ? stock.quote.b / stock.first - 1 : 0);

function paintRow(stock, now) {
  const { bid, ask, spread, change, quotes } = stock.cells;
  const { b, a } = stock.quote;
  bid.firstChild.data = b.toFixed(2);
  ask.firstChild.data = a.toFixed(2);
  spread.firstChild.data = (a - b).toFixed(2);
  quotes.firstChild.data = stock.quotes.toLocaleString("en");
  const percent = changeOf(stock) * 100;
  const arrow = percent >= 0.005 ? "▲ " : percent <= -0.005 ? "▼ " : "";
  change.firstChild.data = `${arrow}${Math.abs(percent).toFixed(2)} %`;
  change.className = arrow === "▲ " ? "change gain" : arrow === "▼ " ? "change loss" : "change muted";
  const flash = now - stock.came < FLASH_MS && stock.last !== 0;
  bid.className = ask.className = !flash ? "price" : stock.last > 0 ? "price up" : "price down";
  return flash;
}

function paintRows(now) {
  for (const stock of changed) {
    // One that flashes stays, to be painted once more without.
    const flashing = stock.seen && stock.quote !== null && paintRow(stock, now);
    if (!flashing) changed.delete(stock);
  }
}

let order = "name";
function sortRows() {
  const sorted = [...stocks];
  if (order === "change") sorted.sort((x, y) => changeOf(y) - changeOf(x) || x.index - y.index);
  $("rows").append(...sorted.map((stock) => stock.row));
}
for (const name of ["name", "change"]) {
  $(`by-${name}`).addEventListener("click", () => {
    order = name;
    for (const other of ["name", "change"]) $(`by-${other}`).setAttribute("aria-pressed", other === name);
    sortRows();
  });
}
$("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toUpperCase();
  for (const stock of stocks) stock.row.hidden = !stock.symbol.startsWith(wanted);
});

// --- The map: one cell a symbol ---

const map = {
  canvas: $("map"),
  context: $("map").getContext("2d"),
  colours: null,

  layout() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    // The nearest to square cells among the grids without a hole.
    const square = Math.sqrt((SYMBOLS.length * width) / height);
    const whole = SYMBOLS.map((_, i) => i + 1).filter((columns) => SYMBOLS.length % columns === 0);
    this.columns = whole.reduce((best, n) => (Math.abs(Math.log(n / square)) < Math.abs(Math.log(best / square)) ? n : best));
    this.cell = { width: width / this.columns, height: (height * this.columns) / SYMBOLS.length };
    const style = getComputedStyle(document.documentElement);
    this.colours = Object.fromEntries(["up", "down", "muted", "text"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
  },

  paint(now) {
    const { context, columns, cell, colours } = this;
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stock of stocks) {
      const x = (stock.index % columns) * cell.width;
      const y = Math.floor(stock.index / columns) * cell.height;
      const moved = changeOf(stock);
      const fresh = stock.quote ? Math.max(0, 1 - (now - stock.came) / 600) : 0;
      context.globalAlpha = stock.quote ? Math.min(1, 0.3 + Math.min(0.35, Math.abs(moved) * 25) + 0.35 * fresh) : 0.15;
      context.fillStyle = moved > 0 ? colours.up : moved < 0 ? colours.down : colours.muted;
      context.fillRect(x + 0.5, y + 0.5, cell.width - 1, cell.height - 1);
    }
  },

  at(event) {
    const x = Math.floor(event.offsetX / this.cell.width);
    return stocks[Math.floor(event.offsetY / this.cell.height) * this.columns + x];
  },
};
map.layout();
addEventListener("resize", () => map.layout());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.layout());
map.canvas.addEventListener("pointermove", (event) => {
  const stock = map.at(event);
  map.canvas.title = stock?.quote ? `${stock.symbol} ${stock.quote.b.toFixed(2)} / ${stock.quote.a.toFixed(2)}` : (stock?.symbol ?? "");
});
map.canvas.addEventListener("click", (event) => {
  const stock = map.at(event);
  if (!stock) return;
  document.querySelector("tr.chosen")?.classList.remove("chosen");
  stock.row.classList.add("chosen");
  stock.row.scrollIntoView({ block: "center", behavior: "smooth" });
});

let mapPainted = 0;
function frame(now) {
  paintRows(now);
  if (now - mapPainted >= 50) {
    map.paint(now);
    mapPainted = now;
  }
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);

// --- Figures ---

/** Arrivals of the last WINDOW_S seconds, a histogram of whole milliseconds for each. */
const arrivals = {
  seconds: Array.from({ length: WINDOW_S }, () => new Uint32Array(ARRIVAL_MS_MAX + 1)),
  early: new Uint32Array(WINDOW_S),
  at: 0,

  take(ms) {
    if (ms < 0) this.early[this.at] += 1;
    this.seconds[this.at][Math.min(ARRIVAL_MS_MAX, Math.max(0, ms))] += 1;
  },

  /** A second is over: the oldest makes room for the next. */
  turn() {
    this.at = (this.at + 1) % WINDOW_S;
    this.seconds[this.at].fill(0);
    this.early[this.at] = 0;
  },

  /** The arrivals below which these shares of all lie. */
  percentiles(shares) {
    const sum = new Uint32Array(ARRIVAL_MS_MAX + 1);
    let total = 0;
    for (const second of this.seconds) for (let ms = 0; ms <= ARRIVAL_MS_MAX; ms++) sum[ms] += second[ms];
    for (const n of sum) total += n;
    const early = this.early.reduce((x, y) => x + y);
    if (total === 0) return { early, values: shares.map(() => null) };
    const values = shares.map((share) => {
      const rank = Math.ceil(total * share);
      let below = 0;
      return sum.findIndex((n) => (below += n) >= rank);
    });
    return { early, values };
  },
};

const grouped = (n) => n.toLocaleString("en");
const inMs = (ms) => (ms === null ? "–" : ms >= ARRIVAL_MS_MAX ? `≥ ${grouped(ms)} ms` : `${grouped(ms)} ms`);

setInterval(() => {
  const now = performance.now();
  const came = counts.total - counts.lastTotal;
  $("rate").textContent = grouped(Math.round((came * 1000) / (now - counts.since)));
  counts.since = now;
  counts.lastTotal = counts.total;
  const { early, values } = arrivals.percentiles([0.5, 0.99]);
  $("p50").textContent = inMs(values[0]);
  $("p99").textContent = inMs(values[1]);
  arrivals.turn();
  $("live").textContent = grouped(counts.live);
  $("total").textContent = grouped(counts.total);
  $("reconnects").textContent = grouped(counts.reconnects);
  $("order").textContent =
    (counts.outOfOrder ? `${grouped(counts.outOfOrder)} quotes came out of order. ` : "") +
    (early ? `${grouped(early)} quotes came before they were sent: the two clocks differ.` : "");
  const isConnected = feeds.every((feed) => feed.state === "connected");
  $("hint").hidden = !isConnected || came > 0;
  document.querySelector(".prices").classList.toggle("stale", !isConnected);
  if (order === "change") sortRows();
}, 1000);

// --- The feed ---

const feeds = [];
for (let from = 0; from < SYMBOLS.length; from += CHANNELS_PER_CONNECTION) {
  const client = new Centrifuge(url("connection/websocket"), { minReconnectDelay: 200, maxReconnectDelay: 3000 });
  const feed = { state: "connecting", wasConnected: false, reason: "" };
  feeds.push(feed);
  client.on("state", ({ newState }) => {
    feed.state = newState;
    if (newState === "connected") {
      if (feed.wasConnected) counts.reconnects += 1;
      feed.wasConnected = true;
    }
    showState();
  });
  client.on("disconnected", ({ code, reason }) => {
    feed.reason = `${code} ${reason}`;
    showState();
  });
  client.on("error", ({ error }) => {
    feed.reason = error?.message ?? "";
  });
  for (const stock of stocks.slice(from, from + CHANNELS_PER_CONNECTION)) {
    const subscription = client.newSubscription(`quotes:${stock.symbol}`);
    subscription.on("publication", ({ data }) => takeQuote(stock, data));
    subscription.subscribe();
  }
  client.connect();
}

function showState() {
  const connected = feeds.filter((feed) => feed.state === "connected").length;
  const given = feeds.find((feed) => feed.state === "disconnected");
  const wasConnected = feeds.some((feed) => feed.wasConnected);
  let [state, text] = ["connecting", wasConnected ? "reconnecting" : "connecting"];
  if (given) [state, text] = ["disconnected", `disconnected: ${given.reason}`];
  else if (connected === feeds.length) [state, text] = ["connected", "connected"];
  $("state").className = `state ${state}`;
  $("state").lastChild.textContent = text;
}

// --- Panels ---

/** A pane of lines, the newest last, at most LINES_MAX. Scrolls along unless the reader has scrolled up. */
function makeOutput(pane) {
  return (kind, text) => {
    const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;
    const line = document.createElement("div");
    line.className = kind;
    line.textContent = text;
    pane.append(line);
    while (pane.childElementCount > LINES_MAX) pane.firstChild.remove();
    if (atEnd) pane.scrollTop = pane.scrollHeight;
  };
}

/** A WebSocket that says what becomes of it. `keep`: it comes back when it was not closed by hand. */
function makeSocket(path, say, { keep = false, opened = () => {}, message = (text) => say("response", `RESPONSE: ${text}`) } = {}) {
  let socket = null;
  let wanted = false;
  let wasOpen = false;
  const open = () => {
    wanted = true;
    wasOpen = false;
    socket = new WebSocket(url(path));
    socket.onopen = () => {
      wasOpen = true;
      say("", "CONNECTED");
      opened();
    };
    socket.onmessage = ({ data }) => message(data);
    socket.onerror = () => say("error", wasOpen ? "ERROR: the connection broke" : `ERROR: no connection to ${url(path)}`);
    socket.onclose = () => {
      socket = null;
      if (wasOpen) say("", "DISCONNECTED");
      if (wanted && keep) setTimeout(() => wanted && !socket && open(), REOPEN_MS);
      else wanted = false;
    };
  };
  return {
    open,
    close() {
      wanted = false;
      socket?.close();
    },
    get isOpen() {
      return socket?.readyState === WebSocket.OPEN;
    },
    get isAbsent() {
      return socket === null;
    },
    send(text) {
      if (!this.isOpen) return say("error", "ERROR: not connected");
      say("", `SENT: ${text}`);
      socket.send(text);
    },
    sendQuietly(text) {
      if (this.isOpen) socket.send(text);
    },
  };
}

const echo = makeSocket("demo/ws", makeOutput($("echo-output")), { keep: true });
echo.open();
$("echo").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = event.target.querySelector("input");
  // After `close`, the next message opens it again.
  if (echo.isAbsent) echo.open();
  else {
    echo.send(field.value);
    field.value = "";
  }
});
$("echo").querySelector("[data-do=close]").addEventListener("click", () => echo.close());

const sayRoom = makeOutput($("room-output"));
let toJoin = [];
const room = makeSocket("connect", sayRoom, {
  opened() {
    for (const text of toJoin.splice(0)) room.send(text);
  },
  message(text) {
    const { type, data } = JSON.parse(text);
    if (type === "PUSH") for (const item of data.items) sayRoom("response", `RESPONSE: ${JSON.stringify(item)}`);
  },
});
sayRoom("note", "JOIN a room; what is published to the topic of its name comes here.");
const ask = (type) => JSON.stringify({ type, data: { room: $("room").querySelector("input").value } });
$("room").addEventListener("submit", (event) => {
  event.preventDefault();
  if (room.isOpen) return room.send(ask("JOIN"));
  toJoin.push(ask("JOIN"));
  if (room.isAbsent) room.open();
});
$("room").querySelector("[data-do=LEAVE]").addEventListener("click", () => room.send(ask("LEAVE")));
$("room").querySelector("[data-do=close]").addEventListener("click", () => room.close());
// As go-push's own page does: every ten seconds, far below its patience.
setInterval(() => room.sendQuietly('{"type":"PING","data":{}}'), 10000);
