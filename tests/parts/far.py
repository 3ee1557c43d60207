"""A server that is far away: a process that stands before one on loopback and keeps all bytes for a while, each way."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

#: Bytes read at once, and bytes on their way that are held at most, of a connection each way.
_PIECE, _HELD = 256 << 10, 64


@contextmanager
def far(port: int, seconds: float) -> Iterator[int]:
    """A port on loopback from which it takes `seconds` to the server and back; nothing is made slower than that."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(port, seconds / 2, theirs), daemon=True)
    process.start()
    try:
        yield int(ours.recv())
    finally:
        process.kill()
        process.join()


def _run(port: int, delay: float, tell: Connection) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE)
        await asyncio.gather(_carry(reader, back, delay), _carry(there, writer, delay))

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_PIECE)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Read on while what was read is on its way: it is a long way, not a narrow one."""
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_HELD)
    loop = asyncio.get_running_loop()

    async def deliver() -> None:
        with suppress(ConnectionError):
            while True:
                due, data = await way.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    delivery = asyncio.ensure_future(deliver())
    with suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            await way.put((loop.time() + delay, data))
    await way.put((loop.time() + delay, b""))
    await delivery
