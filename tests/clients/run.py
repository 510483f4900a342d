"""Runs client libraries against the real gateway: run.py BINARY WORK_DIRECTORY NODE_MODULES MESSAGES [NAME...]

Each client has a gateway of its own on free ports, which must neither lose a message nor fail to stop well; one that restarts its
gateway starts it too. A client prints one JSON line for each thing it checked, and those are the rows of the table. Exit 0 iff
every client ended well.
"""

import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PROTOS = HERE.parent.parent / "proto"
# Longest start and stop of a gateway.
GATEWAY_S = 15
# Longest run of a client, by its number of messages: a floor, and ten times what a message takes on two slow cores.
CLIENT_S, CLIENT_S_PER_MESSAGE = 60, 0.05
LINES_SHOWN = 40

# Name → command, the libraries whose versions are shown.
CLIENTS = {
    "websockets": (["python", "python_websockets.py"], ["websockets"]),
    "aiohttp": (["python", "python_aiohttp.py"], ["aiohttp"]),
    "ws": (["node", "node_ws.js"], ["ws"]),
    "grpcio": (["python", "python_grpcio.py"], ["grpcio", "websockets"]),
    "grpc-js": (["node", "node_grpc.js"], ["@grpc/grpc-js", "ws"]),
    "curl": (["python", "curl_http.py"], ["curl", "websockets"]),
    "demo": (["node", "demo.js"], ["chromium", "playwright-core"]),
}
# Those that start, stop and restart their gateway themselves.
OWN_GATEWAY = {"demo"}


class Login(http.server.BaseHTTPRequestHandler):
    """The service at auth.url: a token that begins with `user-` is that user's uid, nobody else is known."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        token = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["token"]
        known = isinstance(token, str) and token.startswith("user-")
        answer = {"code": 0, "data": {"user_info": {"uid": token}}} if known else {"code": 1}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Failed(Exception):
    """What went wrong, in as many lines as it takes."""


def tail(path):
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LINES_SHOWN:]) or "    (nothing)"


class Gateway:
    """A gateway on free loopback ports with compression on, ended by its process id."""

    def __init__(self, binary, directory, login):
        self.out, self.err = directory / "gateway.out", directory / "gateway.err"
        ports = ["--listen", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
        settings = ["websocket.deflate=true", "shards.count=2", "shards.pin=false", "auth.login=url", f"auth.url={login}"]
        sets = [word for setting in settings for word in ("--set", setting)]
        # Settings and a notify socket of whoever runs this are not ours.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FANWIRE_") and k != "NOTIFY_SOCKET"}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [binary, "serve", *ports, *sets], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )
        self.subscribers = self.address(r"^subscribers +ws://([^/\s]+)[/\s]")
        self.grpc = self.address(r"^gRPC publish +(?:http://)?([^/\s]+)[/\s]")
        self.http = self.address(r"^HTTP publish +(?:http://)?([^/\s]+)[/\s]")

    def address(self, pattern):
        end = time.monotonic() + GATEWAY_S
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(pattern, self.out.read_text(), re.M):
                return found[1]
            time.sleep(0.02)
        self.kill()
        raise Failed(f"the gateway did not say where it listens; its stderr:\n{tail(self.err)}")

    def dropped(self):
        """Messages that some subscriber did not get, by reason; of one that has left none was to be delivered."""
        metrics = urllib.request.urlopen(f"http://{self.http}/metrics", timeout=GATEWAY_S).read().decode()
        rows = re.findall(r'^fanwire_drops_total\{.*reason="(\w+)".*\} (\d+)', metrics, re.M)
        if not rows:
            raise Failed("/metrics has no fanwire_drops_total")
        return {reason: int(n) for reason, n in rows if int(n) and reason != "left"}

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(GATEWAY_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"the gateway did not stop within {GATEWAY_S} s") from None
        if status != 0:
            raise Failed(f"the gateway ended with {status}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def run_client(command, arguments, directory, messages):
    """Its rows, once it has ended well."""
    program, script = command
    program = sys.executable if program == "python" else program
    scratch = directory / "tmp"
    scratch.mkdir()
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
    environment |= {"NODE_PATH": str(node_modules), "CLIENT_LOGS": str(directory)}
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(proxy, None), environment.pop(proxy.upper(), None)
    arguments = [*arguments, "--messages", str(messages)]
    out, err = directory / "client.out", directory / "client.err"
    patience = CLIENT_S + CLIENT_S_PER_MESSAGE * messages
    with out.open("w") as o, err.open("w") as e:
        # A session of its own, so that what it started ends with it.
        child = subprocess.Popen(
            [program, str(HERE / script), *arguments],
            stdin=subprocess.DEVNULL, stdout=o, stderr=e, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            status = child.wait(patience)
        except subprocess.TimeoutExpired:
            status = f"no end within {patience:.0f} s"
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
            shutil.rmtree(scratch, ignore_errors=True)
    rows = [json.loads(line) for line in out.read_text().splitlines() if line.startswith('{"check"')]
    if status != 0 or not rows:
        done = ", ".join(row["check"] for row in rows) or "nothing"
        raise Failed(f"the client ended with: {status}; it had finished: {done}\n  its stderr:\n{tail(err)}")
    return rows


def version(library):
    """As installed, from the lock files."""
    if library in ("curl", "chromium"):
        return subprocess.run([library, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    package = node_modules / library / "package.json"
    if package.exists():
        return json.loads(package.read_text())["version"]
    import importlib.metadata

    return importlib.metadata.version(library)


def run(name, binary, work, messages, login):
    command, _ = CLIENTS[name]
    directory = work / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if name in OWN_GATEWAY:
        return run_client(command, ["--binary", binary, "--screenshot", str(screenshot)], directory, messages)
    gateway = Gateway(binary, directory, login)
    addresses = ["--subscribers", gateway.subscribers, "--grpc", gateway.grpc, "--http", gateway.http]
    try:
        rows = run_client(command, [*addresses, "--protos", str(PROTOS)], directory, messages)
        if dropped := gateway.dropped():
            raise Failed(f"the gateway dropped messages: {dropped}")
        gateway.stop()
        return rows
    except Failed as failure:
        raise Failed(f"{failure}\n  the gateway's stderr:\n{tail(gateway.err)}") from None
    finally:
        gateway.kill()


def main(binary, work, messages, names):
    unknown = [name for name in names if name not in CLIENTS]
    if unknown:
        print(f"clients: no client '{unknown[0]}'; known: {' '.join(CLIENTS)}", file=sys.stderr)
        return 64
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    login = f"http://127.0.0.1:{server.server_port}/"
    table, failures = [], []
    for name in names or CLIENTS:
        versions = ", ".join(f"{library} {version(library)}" for library in CLIENTS[name][1])
        print(f"clients: {name}: {versions}", flush=True)
        try:
            for row in run(name, binary, work, messages, login):
                table.append((name, row["check"], f"{row['messages']:,}", f"{row['seconds']:.2f} s"))
        except Failed as failure:
            failures.append((name, failure))
            table.append((name, "FAILED", "", ""))
    for name, failure in failures:
        print(f"\nclients: FAILED: {name}: {failure}", file=sys.stderr)
        print(f"  alone: scripts/clients {name}; logs: {work / name}", file=sys.stderr, flush=True)
    print(f"\n{'client':<12} {'check':<28} {'messages':>9} {'took':>9}")
    for row in table:
        print("{:<12} {:<28} {:>9} {:>9}".format(*row))
    done = len(names or CLIENTS) - len(failures)
    print(f"clients: {done} ok, {len(failures)} failed")
    return 1 if failures else 0


binary, work, node_modules, messages, *names = sys.argv[1:]
node_modules = pathlib.Path(node_modules)
# Of the demo; the README's is taken by CLIENTS_SCREENSHOT=docs/demo.png.
screenshot = os.environ.get("CLIENTS_SCREENSHOT", os.path.join(work, "demo.png"))
# A signal unwinds the stack, and with it every process ends.
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
sys.exit(main(binary, pathlib.Path(work), int(messages), names))
