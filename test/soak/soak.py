#!/usr/bin/python3
"""soak.py --socket DIR --port N [--minutes N] [--seed N] [--schools N]

Random operations on a primary and its standby (PORT + 1), by several sessions
at once: clients write, change, delete, read and search rows whose plaintext
they know, others rotate, rewrap, re-encrypt, suspend, resume, erase, move
rows, change index keys, verify, and kill the keystore helper and backends.
Then everything is read and compared, on both nodes.

Passed is what was checked: every answer that a client got, every row at the
end, that erased schools stay erased, and that no session's or worker's memory
has grown.  A client may meet only the errors that its operation's neighbours
explain.  Prints "N passed, N failed" at the end; says the seed.
"""

import argparse
import sys
import threading
import time

from administrators import Eraser, Keeper, Mover, Saboteur
from clients import Client
from world import World


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--socket", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--schools", type=int, default=12)
    return parser.parse_args()


def main():
    args = arguments()
    print(f"seed {args.seed}", flush=True)
    world = World(args)
    world.create()
    workers = [Client(world, number) for number in range(3)]
    workers += [Keeper(world, 3), Keeper(world, 4), Mover(world, 5), Eraser(world, 6),
                Saboteur(world, 7)]
    threads = [threading.Thread(target=worker.run, name=repr(worker)) for worker in workers]
    end = time.monotonic() + args.minutes * 60
    for thread in threads:
        thread.start()
    while time.monotonic() < end and not world.stop.is_set():
        world.stop.wait(min(20, max(0, end - time.monotonic())))
        world.watch_memory()
        print(f"  {world.passed} checks passed, {world.failed} failed; "
              + ", ".join(f"{name} {count}" for name, count in sorted(world.done.items())), flush=True)
    world.stop.set()
    for thread in threads:
        thread.join()
    world.check_everything(workers)
    world.check_memory()
    print(f"{world.passed} passed, {world.failed} failed")
    sys.exit(1 if world.failed or not world.passed else 0)


if __name__ == "__main__":
    main()
