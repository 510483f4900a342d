// npm `ws`, offering permessage-deflate as it does by default, is a client of gpush and of go-push; Node's own fetch pushes.
"use strict";
const assert = require("node:assert/strict");
const WebSocket = require("ws");
const { CONNECTED, SUBSCRIBED, UNSUBSCRIBED, LOGGED_IN, LOGGED_OUT, NONSENSE, WINDOW } = require("./common.js");
const { args, payload, soon, Inbox, Progress, readAll, check } = require("./common.js");

async function push(a, topic, text, uid = "") {
  const body = JSON.stringify({ uid, topic, data: Buffer.from(text).toString("base64") });
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

  await check("login, to a user", a.messages, async () => {
    const ask = async (question, answer) => {
      socket.send(question);
      assert.equal(await inbox.next(question), answer);
    };
    await ask('{"code":3,"data":"user-ws"}', LOGGED_IN);
    await ask('{"code":5,"topic":"orders"}', SUBSCRIBED);
    const progress = new Progress();
    const pushing = async () => {
      for (let n = 0; n < a.messages; n++) {
        await progress.until(n - WINDOW);
        await push(a, "orders", payload(n), "user-ws");
      }
    };
    await Promise.all([pushing(), readAll(inbox, a.messages, progress)]);
    await ask('{"code":4}', LOGGED_OUT);
    await push(a, "orders", "too late", "user-ws");
    await ask("ping", "pong");
  });

  const closed = new Promise((resolve) => socket.once("close", (code, reason) => resolve([code, reason.toString()])));
  socket.close(1000, "enough");
  assert.deepEqual(await soon("close", closed), [1000, ""]);
}

/** go-push: what goes to a room comes as the items of PUSHes, several in one, in order. */
async function gopush(a) {
  const socket = new WebSocket(`ws://${a.subscribers}/connect`);
  const inbox = new Inbox(socket);
  await soon("open", new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject)));
  socket.send('{"type":"JOIN","data":{"room":"node.room"}}');
  // A JOIN has no answer, but commands are answered in order.
  socket.send('{"type":"PING","data":{}}');
  assert.equal(await inbox.next("PONG"), '{"type":"PONG","data":{}}');
  await check("go-push room", a.messages, async () => {
    const progress = new Progress();
    const pushing = async () => {
      for (let n = 0; n < a.messages; n++) {
        await progress.until(n - WINDOW);
        await push(a, "node.room", payload(n));
      }
    };
    const reading = async () => {
      while (progress.count < a.messages) {
        const { type, data } = JSON.parse(await inbox.next(`item ${progress.count}`));
        assert.equal(type, "PUSH");
        for (const item of data.items) {
          assert.equal(JSON.stringify(item), payload(progress.count));
          progress.step();
        }
      }
    };
    await Promise.all([pushing(), reading()]);
  });
  socket.close();
}

gpush(args()).then(() => gopush(args()));
