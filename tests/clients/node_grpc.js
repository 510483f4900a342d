// npm `@grpc/grpc-js` pushes, with the .proto files of the tree as `@grpc/proto-loader` reads them; `ws` subscribes.
"use strict";
const assert = require("node:assert/strict");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");
const WebSocket = require("ws");
const { CONNECTED, SUBSCRIBED, WINDOW, args, payload, soon, Inbox, Progress, readAll, check } = require("./common.js");

const BATCH = 250;
const insecure = grpc.credentials.createInsecure();

/** A gpush subscriber of `topic` that reads messages 0..total. */
async function subscriber(a, topic) {
  const socket = new WebSocket(`ws://${a.subscribers}/ws`);
  const inbox = new Inbox(socket);
  assert.equal(await inbox.next("greeting"), CONNECTED);
  socket.send(JSON.stringify({ code: 1, topic }));
  assert.equal(await inbox.next("answer to subscribe"), SUBSCRIBED);
  const progress = new Progress();
  const done = readAll(inbox, a.messages, progress).then(() => socket.close());
  return { progress, done };
}

function load(a, file) {
  return grpc.loadPackageDefinition(loadSync(file, { includeDirs: [a.protos], keepCase: true, longs: Number, defaults: true }));
}

function unary(client, method, request) {
  return soon(method, new Promise((resolve, reject) => {
    client[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
  }));
}

async function pushData(a) {
  const client = new (load(a, "order/Proxy.proto").order.Proxy)(a.grpc, insecure);
  const { progress, done } = await subscriber(a, "node.grpc");
  const pushing = async () => {
    for (let n = 0; n < a.messages; n++) {
      await progress.until(n - WINDOW);
      await unary(client, "PushData", { topic: "node.grpc", data: Buffer.from(payload(n)) });
    }
  };
  await Promise.all([pushing(), done]);
  client.close();
}

async function publishStream(a, Publisher) {
  const client = new Publisher(a.grpc, insecure);
  const { progress, done } = await subscriber(a, "node.stream");
  const stream = client.PublishStream();
  const positions = [];
  const ended = new Promise((resolve, reject) => stream.on("end", resolve).on("error", reject));
  stream.on("data", (answer) => {
    assert.equal(answer.id, positions.length);
    for (const { error, epoch, offset } of answer.results) {
      assert.equal(error, null);
      positions.push({ epoch, offset });
    }
  });
  const pushing = async () => {
    for (let first = 0; first < a.messages; first += BATCH) {
      await progress.until(first - WINDOW);
      const length = Math.min(BATCH, a.messages - first);
      const messages = Array.from({ length }, (_, i) => ({ topic: "node.stream", data: Buffer.from(payload(first + i)) }));
      stream.write({ id: first, messages });
    }
    stream.end();
    await soon("end of the stream", ended);
  };
  await Promise.all([pushing(), done]);
  assert.equal(positions.length, a.messages);
  positions.slice(1).forEach(({ epoch, offset }, i) => {
    assert.equal(epoch, positions[i].epoch);
    assert.ok(offset > positions[i].offset, `offset ${offset} after ${positions[i].offset}`);
  });
  client.close();
}

async function refusals(a, Publisher) {
  const client = new Publisher(a.grpc, insecure);
  for (const request of [{ topic: "t", data: Buffer.from([0xff]) }, { topic: "t".repeat(256), data: Buffer.from("x") }]) {
    await assert.rejects(unary(client, "Publish", request), { code: grpc.status.INVALID_ARGUMENT });
  }
  client.close();
}

async function main(a) {
  const { Publisher } = load(a, "fanwire/v1/publisher.proto").fanwire.v1;
  await check("order.Proxy/PushData", a.messages, () => pushData(a));
  await check("Publisher/PublishStream", a.messages, () => publishStream(a, Publisher));
  await check("refusals", 2, () => refusals(a, Publisher));
}

main(args());
