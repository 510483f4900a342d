"""Python `websockets`, its asyncio client, offering permessage-deflate as it does by default."""

import asyncio

from websockets.asyncio.client import connect

from common import *


async def gpush(a):
    async with connect(f"ws://{a.subscribers}/ws", open_timeout=DEADLINE_S, close_timeout=DEADLINE_S) as ws:
        expect("negotiated", ws.response.headers["Sec-WebSocket-Extensions"].split(";")[0], "permessage-deflate")
        expect("greeting", await ws.recv(), CONNECTED)
        await ws.send(subscribe("python.websockets"))
        expect("answer to subscribe", await ws.recv(), SUBSCRIBED)
        sequence, moved = Sequence("topic", a.messages), asyncio.Condition()

        async def push():
            pusher = Pusher(a.http)
            for n in range(a.messages):
                async with moved:
                    await moved.wait_for(lambda: n - sequence.next < WINDOW)
                await asyncio.to_thread(pusher.push, "python.websockets", payload(n))

        async def read():
            while not sequence.complete:
                sequence.take(await asyncio.wait_for(ws.recv(), DEADLINE_S))
                async with moved:
                    moved.notify()

        with Check("gpush topic", a.messages):
            async with asyncio.TaskGroup() as group:
                group.create_task(push())
                group.create_task(read())
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
                expect(f"answer to {question}", await ws.recv(), answer)
            # The library checks that the pong carries the ping's bytes.
            await asyncio.wait_for(await ws.ping(b"12345"), DEADLINE_S)
        with Check("gpush broadcast", 1):
            pusher = Pusher(a.http)
            await asyncio.to_thread(pusher.push, "python.websockets", "left: not for us")
            await asyncio.to_thread(pusher.push, "", "to everyone")
            expect("broadcast", await asyncio.wait_for(ws.recv(), DEADLINE_S), "to everyone")
    expect("close code", ws.close_code, 1000)


asyncio.run(gpush(arguments()))
