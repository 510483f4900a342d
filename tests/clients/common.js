// What the Node clients share: their arguments, the numbered messages, what clients of gpush must see.
"use strict";
const assert = require("node:assert/strict");
const { parseArgs } = require("node:util");

const CONNECTED = '{"code":20000,"message":"连接成功"}';
const SUBSCRIBED = '{"code":20001,"message":"订阅成功"}';
const UNSUBSCRIBED = '{"code":20002,"message":"取消订阅成功"}';
const LOGGED_IN = '{"code":20003,"message":"登录成功"}';
const LOGGED_OUT = '{"code":20003,"message":"退出成功"}';
const NONSENSE = '{"code":30001,"message":"操作有误","detail":"数据格式不正确"}';

/** A subscriber may be this many messages behind the publisher: far below slow.pending_bytes_max, so none may be dropped. */
const WINDOW = 1000;
/** Longest wait for something that should happen at once, in ms. */
const DEADLINE_MS = 15000;

/** --messages N, and --subscribers HOST:PORT --grpc HOST:PORT --http HOST:PORT --protos DIR or what else run.py passes. */
function args() {
  const names = ["subscribers", "grpc", "http", "protos", "messages", "binary", "screenshot"];
  const { values } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
  return { ...values, messages: Number(values.messages) };
}

/** The nth message: JSON of 20 to 700 bytes with characters of one to four bytes, the same in common.py. */
const payload = (n) => `{"n":${n},"text":"${"aé价🙂".repeat((n * 37) % 67)}"}`;

/** Rejects when `promise` takes longer than DEADLINE_MS. */
function soon(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${DEADLINE_MS} ms: ${what}`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The messages of a `ws` socket, one by one. */
class Inbox {
  constructor(socket) {
    this.waiting = [];
    this.messages = [];
    const give = (message) => (this.waiting.length ? this.waiting.shift()(message) : this.messages.push(message));
    socket.on("message", (data, isBinary) => give(isBinary ? new Error("a binary frame") : data.toString()));
    socket.on("close", (code) => give(new Error(`closed with ${code}`)));
    socket.on("error", (error) => give(error));
  }

  async next(what) {
    const message = this.messages.length
      ? this.messages.shift()
      : await soon(what, new Promise((resolve) => this.waiting.push(resolve)));
    if (message instanceof Error) throw new Error(`${what}: ${message.message}`);
    return message;
  }
}

/** Counts up; `until(n)` waits for it to be at least n. */
class Progress {
  constructor() {
    this.count = 0;
    this.waiting = [];
  }

  step() {
    this.count += 1;
    this.waiting = this.waiting.filter(({ n, resolve }) => n > this.count || resolve());
  }

  async until(n) {
    if (this.count < n) await soon(`message ${n}`, new Promise((resolve) => this.waiting.push({ n, resolve })));
  }
}

/** Reads messages 0..total, each once, in order. */
async function readAll(inbox, total, progress) {
  for (let n = 0; n < total; n++) {
    assert.equal(await inbox.next(`message ${n}`), payload(n));
    progress.step();
  }
}

/** A row of run.py's table, if `body` ends well. */
async function check(name, messages, body) {
  const started = process.hrtime.bigint();
  await body();
  const seconds = Math.round(Number(process.hrtime.bigint() - started) / 1e7) / 100;
  console.log(JSON.stringify({ check: name, messages, seconds }));
}

module.exports = { CONNECTED, SUBSCRIBED, UNSUBSCRIBED, LOGGED_IN, LOGGED_OUT, NONSENSE, WINDOW, DEADLINE_MS };
Object.assign(module.exports, { args, payload, soon, Inbox, Progress, readAll, check });
