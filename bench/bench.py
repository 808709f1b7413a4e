"""Measures nomp_crypt beside its peers; scripts/bench sets everything up.

Prints a table, writes it as JSON and draws it as SVG.  Missed targets are
part of the report; the exit status tells only whether everything was measured.
"""
import argparse
import datetime
import json
import os
import sys
import time

import data
import keys
import lookups
import plot
import scans
import writes
from harness import Bench, machine

SECTIONS = {**scans.SECTIONS, **writes.SECTIONS, **lookups.SECTIONS, **keys.SECTIONS}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description="see bench/README.md")
    for name in ("socket", "data", "bin", "log", "work", "floor", "commit"):
        parser.add_argument(f"--{name}", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help="of the pupils' table; 1,000,000")
    parser.add_argument("--only", help="sections, with commas: " + ", ".join(SECTIONS))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="100,000 rows, short turns")
    size.add_argument("--smoke", action="store_true", help="does it run at all?")
    size.add_argument("--full", action="store_true", help="up to 10,000 schools, 10^7 rows")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else list(SECTIONS)
    unknown = set(args.only) - set(SECTIONS)
    if unknown:
        parser.error("unknown section: " + ", ".join(sorted(unknown)))

    args.repeats, args.slow_repeats, args.rounds, args.seconds = 7, 5, 12, 2
    args.schools, args.pgp_rows, args.cold = 100, 2000, 5000
    args.grow_schools, args.grow_rows, default = 1000, 10 ** 6, 10 ** 6
    if args.quick:
        args.repeats, args.slow_repeats, args.rounds = 5, 3, 6
        args.pgp_rows, args.cold, default = 400, 300, 10 ** 5
        args.grow_schools, args.grow_rows = 100, 10 ** 5
    elif args.smoke:
        args.repeats, args.slow_repeats, args.rounds, args.seconds = 2, 1, 2, 1
        args.schools, args.pgp_rows, args.cold, default = 4, 20, 10, 2000
        args.grow_schools, args.grow_rows = 10, 10 ** 3
    elif args.full:
        args.grow_schools, args.grow_rows = 10 ** 4, 10 ** 7
    args.rows = args.rows or default
    return args


def main():
    args = arguments()
    start = time.time()
    bench = Bench(args)
    bench.reconnect()
    about = machine(bench)
    print(f"{about['cpu']}, {about['cores']} cores, {about['memory_mb']:,} MB; Linux "
          f"{about['kernel']}, PostgreSQL {about['postgresql']}, {about['openssl']}; "
          f"nomp_crypt {args.commit}")
    print(f"Loading {args.rows:,} rows and their variants ...", flush=True)
    data.load(bench)
    print(f"  took {time.time() - start:.0f} s")

    for name in SECTIONS:
        if name in args.only:
            before = len(bench.results)
            SECTIONS[name](bench)
            if len(bench.results) == before:
                sys.exit(f"section {name} measured nothing")

    about["seconds"] = round(time.time() - start)
    about["rows"] = args.rows
    about["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    about["nomp_crypt"] = args.commit
    with open(os.path.join(args.work, "result.json"), "w", encoding="utf-8") as file:
        json.dump({"machine": about, "results": bench.results}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    plot.svg(bench.results, os.path.join(args.work, "result.svg"),
             f"nomp_crypt {args.commit}, {args.rows:,} rows, {about['cpu']}", args.work)
    judged = [row for row in bench.results if row["met"] is not None]
    missed = [row["name"] for row in judged if not row["met"]]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets met"
          + (f"; missed: {', '.join(missed)}" if missed else "")
          + f"; {about['seconds']} s in all")


if __name__ == "__main__":
    main()
