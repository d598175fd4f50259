"""The least that a request costs: uvicorn and nothing behind it.

`python -m benchmarks.support.bare PORT` starts it.

`benchmarks.gateway` measures it in turns with `regworker serve`, whose cost is then comparable
between machines as a multiple of this.
"""

import sys
from typing import Any

import uvicorn

#: About as long as the answer to an accepted job.
BODY = b'{"verdict":"accepted"}' + b" " * 180


async def app(_: Any, receive: Any, send: Any) -> None:
    """Read a body and answer it."""
    while (await receive()).get("more_body"):
        pass
    length = b"%d" % len(BODY)
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
