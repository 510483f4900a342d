// A gateway that its test starts, stops and starts again on the same ports; and other commands of the binary. All end with the
// process that started them, by their process ids.
"use strict";
const { spawn } = require("node:child_process");
const net = require("node:net");
const { soon } = require("./common.js");

const children = new Set();
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));

/** A port of 127.0.0.1 that nobody listens on now. Nothing holds it, so whoever wants it should take it at once. */
function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer().on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** `fanwire` with these arguments; its stderr is shown if it ends before it is asked to. */
class Command {
  constructor(binary, args) {
    const foreign = Object.keys(process.env).filter((key) => key.startsWith("FANWIRE_") || key === "NOTIFY_SOCKET");
    const env = Object.fromEntries(Object.entries(process.env).filter(([key]) => !foreign.includes(key)));
    this.child = spawn(binary, args, { stdio: ["ignore", "pipe", "pipe"], env });
    children.add(this.child);
    this.output = { stdout: "", stderr: "" };
    this.heard = [];
    for (const name of ["stdout", "stderr"]) {
      this.child[name].setEncoding("utf8").on("data", (text) => {
        this.output[name] = (this.output[name] + text).slice(-20000);
        for (const hear of this.heard) hear();
      });
    }
    this.asked = false;
    this.ended = new Promise((resolve) => {
      this.child.on("error", (error) => resolve(`${error}`));
      this.child.on("close", (code, signal) => {
        children.delete(this.child);
        if (!this.asked) console.error(`${args[0]} ended by itself (${code ?? signal}):\n${this.output.stderr}`);
        resolve(code ?? signal);
      });
    });
  }

  /** Waits until it has printed what `pattern` finds. */
  async said(pattern) {
    const found = new Promise((resolve, reject) => {
      const look = () => pattern.test(this.output.stdout) && resolve();
      this.heard.push(look);
      look();
      this.ended.then((status) => reject(new Error(`ended with ${status} before it said ${pattern}: ${this.output.stderr}`)));
    });
    await soon(`${pattern} of ${this.child.spawnargs.slice(1, 3).join(" ")}`, found);
  }

  /** SIGTERM; its exit status, or the name of the signal that ended it. */
  async stop() {
    this.asked = true;
    this.child.kill("SIGTERM");
    return soon("an end after SIGTERM", this.ended);
  }
}

class Gateway {
  /** With `settings` as `--set` takes them. */
  static async start(binary, settings = []) {
    const gateway = new Gateway();
    Object.assign(gateway, { binary, settings });
    const [subscribers, grpc, http] = [await freePort(), await freePort(), await freePort()].map((port) => `127.0.0.1:${port}`);
    Object.assign(gateway, { subscribers, grpc, http });
    await gateway.startAgain();
    return gateway;
  }

  async startAgain() {
    const ports = ["--listen", this.subscribers, "--grpc-address", this.grpc, "--http-address", this.http];
    const settings = ["shards.count=2", "shards.pin=false", ...this.settings].flatMap((setting) => ["--set", setting]);
    this.command = new Command(this.binary, ["serve", ...ports, ...settings]);
    await this.command.said(/^HTTP publish /m);
  }

  async stop() {
    const status = await this.command.stop();
    if (status !== 0) throw new Error(`the gateway ended with ${status}: ${this.command.output.stderr}`);
  }
}

module.exports = { Command, Gateway };
