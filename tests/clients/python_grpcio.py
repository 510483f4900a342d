"""Python `grpcio` with stubs that `grpcio-tools` makes of the .proto files; `websockets`' threaded client subscribes."""

import contextlib
import pathlib
import sys
import tempfile
import threading

import grpc
from grpc_tools import protoc
from websockets.sync.client import connect

from common import *

BATCH = 250


def stubs(protos):
    """The modules of every .proto file, made anew: what is tested is what the tree says."""
    directory = tempfile.mkdtemp(prefix="stubs-")  # In run.py's own TMPDIR, which it removes.
    files = [str(path.relative_to(protos)) for path in sorted(pathlib.Path(protos).rglob("*.proto"))]
    arguments = ["protoc", f"-I{protos}", f"--python_out={directory}", f"--grpc_python_out={directory}", *files]
    expect("protoc", protoc.main(arguments), 0)
    sys.path.insert(0, directory)
    import fanwire.v1.publisher_pb2 as publisher
    import fanwire.v1.publisher_pb2_grpc as publisher_grpc
    import order.Proxy_pb2 as proxy
    import order.Proxy_pb2_grpc as proxy_grpc

    return proxy, proxy_grpc, publisher, publisher_grpc


class Subscriber:
    """Reads one topic in a thread of its own."""

    def __init__(self, address, topic, total):
        self.closing = contextlib.ExitStack()
        self.ws = self.closing.enter_context(connect(f"ws://{address}/ws", open_timeout=DEADLINE_S, compression=None))
        expect("greeting", self.ws.recv(DEADLINE_S), CONNECTED)
        self.ws.send(subscribe(topic))
        expect("answer to subscribe", self.ws.recv(DEADLINE_S), SUBSCRIBED)
        self.sequence, self.moved, self.failure = Sequence(topic, total), threading.Condition(), None
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            while not self.sequence.complete:
                text = self.ws.recv(DEADLINE_S)
                with self.moved:
                    self.sequence.take(text)
                    self.moved.notify()
        except BaseException as failure:
            with self.moved:
                self.failure = failure
                self.moved.notify()

    def wait_within_window(self, sent):
        with self.moved:
            self.moved.wait_for(lambda: self.failure or sent - self.sequence.next < WINDOW, DEADLINE_S)

    def finish(self):
        with self.moved:
            self.moved.wait_for(lambda: self.failure or self.sequence.complete, DEADLINE_S)
        if self.failure:
            sys.exit(f"the subscriber: {self.failure!r}")
        expect("messages received", self.sequence.next, self.sequence.total)
        self.thread.join()
        self.closing.close()


def main(a):
    proxy, proxy_grpc, publisher, publisher_grpc = stubs(a.protos)
    with grpc.insecure_channel(a.grpc) as channel:
        with Check("order.Proxy/PushData", a.messages):
            subscriber = Subscriber(a.subscribers, "python.grpcio", a.messages)
            push = proxy_grpc.ProxyStub(channel).PushData
            for n in range(a.messages):
                subscriber.wait_within_window(n)
                push(proxy.Data(topic="python.grpcio", data=payload(n).encode()), timeout=DEADLINE_S)
            subscriber.finish()

        ours = publisher_grpc.PublisherStub(channel)
        with Check("Publisher/PublishStream", a.messages):
            subscriber = Subscriber(a.subscribers, "python.stream", a.messages)

            def batches():
                for first in range(0, a.messages, BATCH):
                    subscriber.wait_within_window(first)
                    numbers = range(first, min(first + BATCH, a.messages))
                    messages = [publisher.PublishRequest(topic="python.stream", data=payload(n).encode()) for n in numbers]
                    yield publisher.PublishBatch(id=first, messages=messages)

            offsets = []
            for expected, answer in zip(range(0, a.messages, BATCH), ours.PublishStream(batches()), strict=True):
                expect("batch id", answer.id, expected)
                for result in answer.results:
                    expect("error", result.HasField("error"), False)
                    offsets.append((result.epoch, result.offset))
            expect("one result a message", len(offsets), a.messages)
            expect("one epoch", len({epoch for epoch, _ in offsets}), 1)
            expect("offsets grow", sorted(set(offsets)), offsets)
            subscriber.finish()

        with Check("refusals", 2):
            for request in (
                publisher.PublishRequest(topic="t", data=b"\xff"),
                publisher.PublishRequest(topic="t" * 256, data=b"x"),
            ):
                try:
                    ours.Publish(request, timeout=DEADLINE_S)
                except grpc.RpcError as error:
                    expect("status", error.code(), grpc.StatusCode.INVALID_ARGUMENT)
                else:
                    sys.exit(f"accepted: {request!r:.100}")


main(arguments())
