"""The upstream of every subject, as a process of its own.

python -m tests.bench.upstream --port PORT
"""

from __future__ import annotations

import argparse
import gc

import uvloop

from tests.bench.workloads import EXCHANGES
from understudy.proxy.bench.upstream import Answers, listen


async def _serve(port: int) -> None:
    server = await listen(Answers(EXCHANGES.values()), port)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
