"""Python `aiohttp`: its WebSocket client subscribes, its HTTP client pushes."""

import asyncio

import aiohttp

from common import *


async def gpush(a):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)) as session:
        async with session.ws_connect(f"ws://{a.subscribers}/ws", compress=15) as ws:
            expect("negotiated window", ws.compress, 15)
            expect("greeting", await ws.receive_str(), CONNECTED)
            await ws.send_str(subscribe("python.aiohttp"))
            expect("answer to subscribe", await ws.receive_str(), SUBSCRIBED)

            async def push(topic, text, uid=""):
                url = f"http://{a.http}/v1/pushData"
                async with session.post(url, data=push_body(topic, text, uid)) as answer:
                    expect("a push", (answer.status, await answer.json(content_type=None)), (200, {}))

            async def receive():
                return await ws.receive_str(timeout=DEADLINE_S)

            async def receive_one():
                return [await receive()]

            await stream("gpush topic", a.messages, lambda n: push("python.aiohttp", payload(n)), receive_one)
            await private("aiohttp", a.messages, ws.send_str, receive, push)
            with Check("refusals", 4):
                for method, path, body, status, code in [
                    ("POST", "/v1/pushData", "no JSON", 400, 3),
                    ("POST", "/v1/pushData", '{"topic":"t","data":"/w=="}', 400, 3),
                    ("GET", "/v1/pushData", None, 501, 12),
                    ("POST", "/v1/nothing", "{}", 404, 5),
                ]:
                    async with session.request(method, f"http://{a.http}{path}", data=body) as answer:
                        told = await answer.json(content_type=None)
                        expect(f"{method} {path} {body}", (answer.status, told["code"]), (status, code))
            await ws.close()
            expect("close code", ws.close_code, 1000)


asyncio.run(gpush(arguments()))
