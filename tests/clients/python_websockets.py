"""Python `websockets`, its asyncio client, offering permessage-deflate as it does by default: gpush's dialect and go-push's."""

import asyncio

from websockets.asyncio.client import connect

from common import *


async def gpush(a):
    async with connect(f"ws://{a.subscribers}/ws", open_timeout=DEADLINE_S, close_timeout=DEADLINE_S) as ws:
        expect("negotiated", ws.response.headers["Sec-WebSocket-Extensions"].split(";")[0], "permessage-deflate")
        expect("greeting", await ws.recv(), CONNECTED)
        await ws.send(subscribe("python.websockets"))
        expect("answer to subscribe", await ws.recv(), SUBSCRIBED)
        pusher = Pusher(a.http)

        async def push(topic, text, uid=""):
            await asyncio.to_thread(pusher.push, topic, text, uid)

        async def receive():
            return await asyncio.wait_for(ws.recv(), DEADLINE_S)

        async def receive_one():
            return [await receive()]

        await stream("gpush topic", a.messages, lambda n: push("python.websockets", payload(n)), receive_one)
        with Check("gpush answers", 6):
            for question, answer in [
                ("ping", "pong"),
                ("PING", "pong"),
                ("nonsense", NONSENSE),
                (subscribe("python.websockets"), SUBSCRIBED),
                (unsubscribe("python.websockets"), UNSUBSCRIBED),
                (unsubscribe("never subscribed"), UNSUBSCRIBED),
            ]:
                await ws.send(question)
                expect(f"answer to {question}", await receive(), answer)
            # The library checks that the pong carries the ping's bytes.
            await asyncio.wait_for(await ws.ping(b"12345"), DEADLINE_S)
        with Check("gpush broadcast", 1):
            await push("python.websockets", "left: not for us")
            await push("", "to everyone")
            expect("broadcast", await receive(), "to everyone")
        await private("websockets", a.messages, ws.send, receive, push)
    expect("close code", ws.close_code, 1000)


async def gopush(a):
    async with connect(f"ws://{a.subscribers}/connect", open_timeout=DEADLINE_S, close_timeout=DEADLINE_S) as ws:
        pusher = Pusher(a.http)

        async def receive():
            return await asyncio.wait_for(ws.recv(), DEADLINE_S)

        async def receive_items():
            return items(await receive())

        await ws.send('{"type":"JOIN","data":{"room":"python.room"}}')
        # A JOIN has no answer, but commands are answered in order.
        await ws.send('{"type":"PING","data":{}}')
        expect("answer to PING", await receive(), '{"type":"PONG","data":{}}')
        push = lambda n: asyncio.to_thread(pusher.push, "python.room", payload(n))
        await stream("go-push room", a.messages, push, receive_items)
        await ws.send('{"type":"LEAVE","data":{"room":"python.room"}}')
        await ws.send('{"type":"PING","data":{}}')
        expect("answer to PING", await receive(), '{"type":"PONG","data":{}}')
        await asyncio.to_thread(pusher.push, "python.room", "left: not for us")
        await asyncio.to_thread(pusher.push, "", "to everyone")
        expect("broadcast", await receive_items(), ['"to everyone"'])


async def main(a):
    await gpush(a)
    await gopush(a)


asyncio.run(main(arguments()))
