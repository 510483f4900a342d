// What many write first: a fan-out by Node and its library `ws`, no compression. ws://…/sub/TOPIC subscribes, POST /pub?id=TOPIC
// publishes. Says "listening PORT" once it does.
"use strict";
const http = require("http");
const { WebSocketServer } = require("ws");

const topics = new Map();
const server = http.createServer((request, response) => {
  const topic = new URL(request.url, "http://host").searchParams.get("id");
  const body = [];
  request.on("data", (part) => body.push(part));
  request.on("end", () => {
    const message = Buffer.concat(body);
    for (const client of topics.get(topic) ?? []) client.send(message, { binary: false });
    response.end();
  });
});
server.keepAliveTimeout = 300_000;

const clients = new WebSocketServer({ server, perMessageDeflate: false, clientTracking: false });
clients.on("connection", (client, request) => {
  const topic = decodeURIComponent(request.url.replace(/^\/sub\//, ""));
  if (!topics.has(topic)) topics.set(topic, new Set());
  topics.get(topic).add(client);
  client.on("error", () => {}); // "close" follows.
  client.on("close", () => topics.get(topic).delete(client));
});
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => console.log(`listening ${server.address().port}`));
