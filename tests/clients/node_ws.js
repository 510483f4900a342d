// npm `ws` subscribes, offering permessage-deflate as it does by default; Node's own fetch pushes.
"use strict";
const assert = require("node:assert/strict");
const WebSocket = require("ws");
const { CONNECTED, SUBSCRIBED, UNSUBSCRIBED, NONSENSE, WINDOW } = require("./common.js");
const { args, payload, soon, Inbox, Progress, readAll, check } = require("./common.js");

async function push(a, topic, text) {
  const body = JSON.stringify({ topic, data: Buffer.from(text).toString("base64") });
  const answer = await fetch(`http://${a.http}/v1/pushData`, { method: "POST", body });
  assert.deepEqual([answer.status, await answer.text()], [200, "{}"]);
}

async function gpush(a) {
  const socket = new WebSocket(`ws://${a.subscribers}/ws`);
  const inbox = new Inbox(socket);
  assert.equal(await inbox.next("greeting"), CONNECTED);
  assert.ok(socket.extensions.includes("permessage-deflate"), socket.extensions);
  socket.send('{"code":1,"topic":"node.ws"}');
  assert.equal(await inbox.next("answer to subscribe"), SUBSCRIBED);

  await check("gpush topic", a.messages, async () => {
    const progress = new Progress();
    const pushing = async () => {
      for (let n = 0; n < a.messages; n++) {
        await progress.until(n - WINDOW);
        await push(a, "node.ws", payload(n));
      }
    };
    await Promise.all([pushing(), readAll(inbox, a.messages, progress)]);
  });

  await check("gpush answers", 4, async () => {
    for (const [question, answer] of [
      ["ping", "pong"],
      ["nonsense", NONSENSE],
      ['{"code":1,"topic":"node.ws"}', SUBSCRIBED],
      ['{"code":2,"topic":"node.ws"}', UNSUBSCRIBED],
    ]) {
      socket.send(question);
      assert.equal(await inbox.next(question), answer);
    }
    const pong = new Promise((resolve) => socket.once("pong", resolve));
    socket.ping("12345");
    assert.equal((await soon("pong", pong)).toString(), "12345");
  });

  const closed = new Promise((resolve) => socket.once("close", (code, reason) => resolve([code, reason.toString()])));
  socket.close(1000, "enough");
  assert.deepEqual(await soon("close", closed), [1000, ""]);
}

gpush(args());
