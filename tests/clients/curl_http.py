"""`curl`: pushes all messages from one process over one kept connection; `websockets` subscribes. And what plain HTTP sees."""

import asyncio
import json
import pathlib
import tempfile

from websockets.asyncio.client import connect

from common import *


async def curl(*arguments):
    """What curl prints. Its own failure is ours."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "300", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    expect(f"exit code of curl {' '.join(arguments):.200} ({err.decode().strip()})", process.returncode, 0)
    return out.decode()


def pushes(a, first, count):
    """A configuration file of curl: `count` requests one after another. A body is a file: any character is itself there."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="curl-"))  # In run.py's own TMPDIR, which it removes.
    blocks = []
    for n in range(first, first + count):
        body = directory / str(n)
        body.write_text(push_body("curl", payload(n)))
        blocks.append(
            f'url = "http://{a.http}/v1/pushData"\ndata-binary = "@{body}"\n'
            f'silent\nshow-error\nmax-time = {DEADLINE_S}\nwrite-out = " %{{http_code}} %{{num_connects}}\\n"\n'
        )
    config = directory / "pushes"
    config.write_text("next\n".join(blocks))
    return config


async def main(a):
    async with connect(f"ws://{a.subscribers}/ws") as ws:
        expect("greeting", await ws.recv(), CONNECTED)
        await ws.send(subscribe("curl"))
        expect("answer to subscribe", await ws.recv(), SUBSCRIBED)
        with Check("POST /v1/pushData", a.messages):
            sequence = Sequence("topic", a.messages)

            async def read():
                while not sequence.complete:
                    sequence.take(await asyncio.wait_for(ws.recv(), DEADLINE_S))

            reading = asyncio.create_task(read())
            for first in range(0, a.messages, WINDOW):
                count = min(WINDOW, a.messages - first)
                answers = (await curl("-K", str(pushes(a, first, count)))).splitlines()
                expect("answers", answers, ["{} 200 1"] + ["{} 200 0"] * (count - 1))
            await reading

    status = ["-w", " %{http_code}"]
    with Check("admin", 3):
        for path, body in [("healthz", "200"), ("readyz", "200"), ("metrics", "200")]:
            expect(path, (await curl(*status, f"http://{a.http}/{path}")).rsplit(" ", 1)[1], body)
    with Check("refusals", 5):
        for arguments, code in [
            (["-d", "no JSON", f"http://{a.http}/v1/pushData"], 400),
            (["-X", "DELETE", f"http://{a.http}/v1/pushData"], 501),
            ([f"http://{a.http}/nothing"], 404),
            ([f"http://{a.subscribers}/ws"], 400),
            ([f"http://{a.subscribers}/nothing"], 404),
        ]:
            expect(" ".join(arguments), (await curl(*status, *arguments)).rsplit(" ", 1)[1], str(code))


asyncio.run(main(arguments()))
