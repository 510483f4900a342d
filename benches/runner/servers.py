"""The gateway and its peers: installed or not, which version, started and stopped.

Each runs alone on the server's core, on a free loopback port, with files of its own under the run's directory, in a session of its
own: what ends is what was started here, and all of it, however this program ends.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "benches/peers"
WORK = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "bench"

CENTRIFUGO = "github.com/centrifugal/centrifugo/v6@v6.9.1"
START_S, STOP_S, INSTALL_S = 30, 10, 900

os.environ["PATH"] += ":/usr/sbin"  # Where Debian has servers, and not every user looks.
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This server can't be had here; the text is the reason, for the table."""


class Failed(Exception):
    """A server or a load client that should have worked did not."""


def spawn(command, core=None, **options):
    """A child in a session of its own, on `core` alone, that ends with this program even if that is killed."""

    def before_exec():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if core is not None:
            os.sched_setaffinity(0, {core})

    return subprocess.Popen([str(part) for part in command], start_new_session=True, preexec_fn=before_exec, **options)


def stop(process):
    """Ends the child and whatever it started: asked first, then not."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            break
    # What the child left behind in its session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def output(command, **options):
    """What a short command prints, on either stream."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=INSTALL_S, **options)
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no word"])[-1]
        raise Unavailable(f"`{command[0]} {command[1]} …` failed: {last[:200]}")
    return done.stdout.strip()


def tools(group):
    """What `scripts/install-tools` has of `group`, or why not."""
    output([str(ROOT / "scripts/install-tools"), group])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def filled(template, directory, **values):
    """A peer's configuration with its `@name@`s replaced, in `directory`."""
    text = (PEERS / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    path = directory / template
    path.write_text(text)
    return path


class Server:
    """One that can be measured. `start` gives its process and the flags that lead `fanwire bench` to it."""

    title = ""
    publishes = ""

    def __init__(self, cores):
        self.core = cores[0]

    def version(self):
        """Installs what is missing. Raises Unavailable."""
        raise NotImplementedError

    def start(self, row, directory):
        """(process or None, flags of `fanwire bench`)"""
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, row, directory):
        """Flags of `fanwire bench` while the server runs."""
        directory.mkdir(parents=True, exist_ok=True)
        self.process = None
        try:
            flags = self.start(row, directory)
            yield [*flags, "--server-core", self.core]
        finally:
            if self.process is not None:
                stop(self.process)

    def spawn(self, command, directory, **options):
        with open(directory / "log", "w") as log:
            self.process = spawn(command, self.core, stdin=subprocess.DEVNULL, stderr=log, **{"stdout": log, **options})
        return self.process

    def complain(self, directory, what):
        said = (directory / "log").read_text().strip().splitlines()
        return Failed(f"{self.title}: {what}" + "".join(f"\n  {line}" for line in said[-5:]))

    def await_true(self, there, directory, what):
        """Until `there()`, or a complaint that the server still `what`."""
        end = time.monotonic() + START_S
        while not there():
            if self.process.poll() is not None:
                raise self.complain(directory, f"ended at once, exit code {self.process.returncode}")
            if time.monotonic() > end:
                raise self.complain(directory, f"{what} after {START_S} s")
            time.sleep(0.02)

    def await_port(self, port, directory):
        """Until it listens."""

        def listens():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True

        self.await_true(listens, directory, "does not listen")

    def lines(self, directory):
        """Lines of its stdout, until START_S have gone by without the caller having what it wants."""
        end = time.monotonic() + START_S
        os.set_blocking(self.process.stdout.fileno(), False)
        while time.monotonic() < end:
            line = self.process.stdout.readline()
            if line:
                yield line.decode().strip()
            elif self.process.poll() is not None:
                break
            else:
                time.sleep(0.01)
        raise self.complain(directory, "did not say where it listens")


class Fanwire(Server):
    title = "Fanwire"
    publishes = "gRPC, one stream of batches"

    def __init__(self, cores, binary):
        super().__init__(cores)
        self.binary = binary

    def version(self):
        return output([str(self.binary), "--version"])

    def serve(self, settings, directory):
        """Starts it on free ports; where it has subscribers, gRPC and HTTP."""
        any_port = "127.0.0.1:0"
        command = [self.binary, "serve", "--listen", any_port, "--grpc-address", any_port, "--http-address", any_port]
        for setting in ["log.level=warn", *settings]:
            command += ["--set", setting]
        self.spawn(command, directory, stdout=subprocess.PIPE, cwd=directory)
        # As `fanwire bench --spawn` reads them.
        found, names = {}, ("subscribers", "gRPC publish", "HTTP publish")
        for line in self.lines(directory):
            for name in names:
                if line.startswith(name):
                    found.setdefault(name, line.removeprefix(name).split()[0].removeprefix("http://").rstrip("/"))
            if len(found) == len(names):
                break
        return tuple(found[name] for name in names)

    def start(self, row, directory):
        url, grpc, http = self.serve(row.settings, directory)
        return ["--url", url, "--grpc", grpc, "--http", http, "--admin", http, "--server-pid", self.process.pid]


class Bare(Server):
    """`fanwire bench` starts and stops it itself."""

    title = "bare send() loop"
    publishes = "itself"

    def version(self):
        return "of this commit"

    def start(self, row, directory):
        return ["--bare"]


class Nats(Server):
    title = "nats-server"
    publishes = "its own protocol over TCP"

    def version(self):
        tools("nats")
        return output(["nats-server", "--version"])

    def start(self, row, directory):
        port = free_port()
        self.spawn(["nats-server", "-c", filled("nats.conf", directory, port=port)], directory)
        self.await_port(port, directory)
        where = f"127.0.0.1:{port}"
        return ["--dialect", "nats", "--url", f"nats://{where}", "--publish", "nats", "--nats", where, "--server-pid", self.process.pid]


class Nchan(Server):
    title = "nginx + nchan"
    publishes = "POST, kept alive"

    def version(self):
        tools("nchan")
        module = output(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"])
        return f"{output(['nginx', '-v']).rpartition('/')[2]}, nchan {module}"

    def start(self, row, directory):
        port, files = free_port(), os.sysconf("SC_OPEN_MAX")
        values = {"port": port, "run": directory, "nofile": files, "connections": files - 100}
        self.spawn(["nginx", "-e", "stderr", "-c", filled("nginx.conf", directory, **values)], directory)
        self.await_port(port, directory)
        # The worker does the work; the master only listens before and watches it.
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
        self.await_true(lambda: children.read_text().split(), directory, "has no worker")
        [worker] = children.read_text().split()
        return ["--dialect", "raw", "--url", f"ws://127.0.0.1:{port}/sub/{{topic}}",
                "--publish", "post", "--post-url", f"http://127.0.0.1:{port}/pub?id={{topic}}", "--server-pid", worker]


class Ws(Server):
    title = "Node + ws"
    publishes = "POST, kept alive"

    def version(self):
        tools("node")
        modules, lock = WORK / "npm", PEERS / "package-lock.json"
        stamp = modules / "done"
        if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
            modules.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PEERS / name, modules)
            output(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(modules)])
            shutil.copy(lock, stamp)
        package = json.loads((modules / "node_modules/ws/package.json").read_text())
        return f"Node {output(['node', '--version'])}, ws {package['version']}"

    def start(self, row, directory):
        environment = {**os.environ, "NODE_PATH": str(WORK / "npm/node_modules"), "NODE_ENV": "production"}
        self.spawn(["node", PEERS / "ws.js"], directory, stdout=subprocess.PIPE, env=environment)
        port = next(line for line in self.lines(directory) if line.startswith("listening ")).split()[1]
        return ["--dialect", "raw", "--url", f"ws://127.0.0.1:{port}/sub/{{topic}}",
                "--publish", "post", "--post-url", f"http://127.0.0.1:{port}/pub?id={{topic}}",
                "--server-pid", self.process.pid]


class Centrifugo(Server):
    title = "Centrifugo"
    publishes = "its HTTP API, kept alive"
    binary = WORK / "bin/centrifugo"

    def version(self):
        wanted = CENTRIFUGO.rpartition("@v")[2]
        stamp = WORK / "bin/centrifugo.version"
        if not stamp.exists() or stamp.read_text() != wanted:
            go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
            if go is None:
                raise Unavailable("no Go here to build it with")
            output([go, "install", CENTRIFUGO], env={**os.environ, "GOBIN": str(self.binary.parent)})
            stamp.write_text(wanted)
        return wanted

    def start(self, row, directory):
        port = free_port()
        self.spawn([self.binary, "--config", filled("centrifugo.json", directory, port=port)], directory)
        self.await_port(port, directory)
        where = f"127.0.0.1:{port}"
        return ["--dialect", "centrifugo", "--url", f"ws://{where}/connection/websocket",
                "--publish", "centrifugo", "--centrifugo", where, "--server-pid", self.process.pid]


def all_servers(cores, binary):
    """By the names that scenario files use."""
    return {
        "fanwire": Fanwire(cores, binary), "bare": Bare(cores), "nats": Nats(cores), "nchan": Nchan(cores), "ws": Ws(cores),
        "centrifugo": Centrifugo(cores),
    }
