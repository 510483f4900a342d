"""What the Python clients share: their arguments, the numbered messages, what clients of gpush and go-push must see."""

import argparse
import asyncio
import base64
import http.client
import json
import sys
import time

CONNECTED = '{"code":20000,"message":"连接成功"}'
SUBSCRIBED = '{"code":20001,"message":"订阅成功"}'
UNSUBSCRIBED = '{"code":20002,"message":"取消订阅成功"}'
LOGGED_IN = '{"code":20003,"message":"登录成功"}'
LOGGED_OUT = '{"code":20003,"message":"退出成功"}'
NOT_LOGGED_IN = '{"code":30002,"message":"操作有误","detail":"未登录"}'
WRONG_TOKEN = '{"code":30003,"message":"token验证失败","detail":"token验证失败"}'
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

    def push(self, topic, text, uid=""):
        self.connection.request("POST", "/v1/pushData", push_body(topic, text, uid))
        answer = self.connection.getresponse()
        expect("a push", (answer.status, answer.read()), (200, b"{}"))


def push_body(topic, text, uid=""):
    return json.dumps({"uid": uid, "topic": topic, "data": base64.b64encode(text.encode()).decode()})


async def stream(name, total, push, receive):
    """Pushes messages 0..total by `push(n)` while `receive()` gives them back, several at once if it likes; then the row `name`."""
    sequence, moved = Sequence(name, total), asyncio.Condition()

    async def pushing():
        for n in range(total):
            async with moved:
                await moved.wait_for(lambda: n - sequence.next < WINDOW)
            await push(n)

    async def reading():
        while not sequence.complete:
            for text in await receive():
                sequence.take(text)
            async with moved:
                moved.notify()

    with Check(name, total):
        async with asyncio.TaskGroup() as group:
            group.create_task(pushing())
            group.create_task(reading())


async def private(client, total, send, receive, push):
    """Login, a private topic, pushes to a user in order, logout: by `await send(text)`, `await receive()` and
    `await push(topic, text, uid)`. run.py's login service takes tokens that begin with `user-`, and the token is the uid."""
    uid, subscription = f"user-{client}", '{"code":5,"topic":"orders"}'

    async def ask(question, answer):
        await send(question)
        expect(f"answer to {question}", await receive(), answer)

    await ask(subscription, NOT_LOGGED_IN)
    await ask('{"code":3,"data":"stranger"}', WRONG_TOKEN)
    await ask(json.dumps({"code": 3, "data": uid}), LOGGED_IN)
    await ask(subscription, SUBSCRIBED)

    async def push_both(n):
        await push("orders", "another user's", "user-somebody-else")
        await push("orders", payload(n), uid)

    async def receive_one():
        return [await receive()]

    await stream("login, to a user", total, push_both, receive_one)
    await ask('{"code":4}', LOGGED_OUT)
    await push("orders", "too late", uid)
    await ask("ping", "pong")


def items(text):
    """The items of a go-push client's PUSH, as they were pushed."""
    message = json.loads(text)
    expect("type", message["type"], "PUSH")
    return [json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in message["data"]["items"]]
