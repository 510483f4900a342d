"""What the Python clients share: their arguments, the numbered messages, what a gpush client must see."""

import argparse
import base64
import http.client
import json
import sys
import time

CONNECTED = '{"code":20000,"message":"连接成功"}'
SUBSCRIBED = '{"code":20001,"message":"订阅成功"}'
UNSUBSCRIBED = '{"code":20002,"message":"取消订阅成功"}'
NONSENSE = '{"code":30001,"message":"操作有误","detail":"数据格式不正确"}'

# A subscriber may be this many messages behind the publisher: far below slow.pending_bytes_max, so none may be dropped.
WINDOW = 1000
# Longest wait for something that should happen at once.
DEADLINE_S = 15


def arguments():
    """--subscribers HOST:PORT --grpc HOST:PORT --http HOST:PORT --messages N --protos DIR, as run.py passes them."""
    parser = argparse.ArgumentParser()
    for name in ("subscribers", "grpc", "http", "protos"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--messages", type=int, required=True)
    return parser.parse_args()


def payload(n):
    """The nth message: JSON of 20 to 700 bytes with characters of one to four bytes, the same in common.js."""
    return '{"n":%d,"text":"%s"}' % (n, "aé价🙂" * (n * 37 % 67))


def subscribe(topic):
    return json.dumps({"code": 1, "topic": topic})


def unsubscribe(topic):
    return json.dumps({"code": 2, "topic": topic})


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: expected {wanted!r:.300}, got {got!r:.300}")


class Sequence:
    """Messages 0..total, each once, in order; anything else ends the client with what came instead."""

    def __init__(self, what, total):
        self.what, self.total, self.next = what, total, 0

    def take(self, text):
        expect(f"{self.what}: message {self.next}", text, payload(self.next))
        self.next += 1

    @property
    def complete(self):
        return self.next == self.total


class Check:
    """`with Check("gpush", n):` reports a row of run.py's table if its body ends well."""

    def __init__(self, name, messages):
        self.name, self.messages = name, messages

    def __enter__(self):
        self.started = time.monotonic()
        return self

    def __exit__(self, failed, *_):
        if failed is None:
            seconds = round(time.monotonic() - self.started, 2)
            print(json.dumps({"check": self.name, "messages": self.messages, "seconds": seconds}), flush=True)


class Pusher:
    """gpush's `POST /v1/pushData` by the standard library, one kept connection."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE_S)

    def push(self, topic, text):
        self.connection.request("POST", "/v1/pushData", push_body(topic, text))
        answer = self.connection.getresponse()
        expect("a push", (answer.status, answer.read()), (200, b"{}"))


def push_body(topic, text):
    return json.dumps({"topic": topic, "data": base64.b64encode(text.encode()).decode()})
