#!/usr/bin/python3
"""libpq's own calls, which psql has no words for: parameters in binary,
results in binary, prepared statements of the protocol.

    libpq_calls.py CONNINFO < calls > answers

One connection; a line of JSON per call and per answer.  A call:

    {"sql": "...", "params": ["hex" or null, ...], "types": [oid, ...],
     "formats": [0 or 1, ...], "result": 0 or 1}

The parameters' bytes are in hex; all but sql may be left out.  With "prepare":
NAME the sql is prepared under that name, with "execute": NAME it is run, and
without either it is an unnamed statement; without parameters a simple query
unless "extended" is true.  An answer has "state" (SQLSTATE, empty if there is
no error) and "rows", values in hex.
"""

import json
import sys

from psycopg import pq


def call(connection, what):
    params = [None if p is None else bytes.fromhex(p)
              for p in what.get("params", [])]
    formats = what.get("formats") or [0] * len(params)
    result_format = what.get("result", 0)
    sql = what.get("sql", "").encode()
    if "prepare" in what:
        return connection.prepare(what["prepare"].encode(), sql,
                                  param_types=what.get("types"))
    if "execute" in what:
        return connection.exec_prepared(what["execute"].encode(), params,
                                        param_formats=formats,
                                        result_format=result_format)
    if params or result_format or what.get("extended"):
        return connection.exec_params(sql, params,
                                      param_types=what.get("types"),
                                      param_formats=formats,
                                      result_format=result_format)
    return connection.exec_(sql)


def answer(connection, what):
    result = call(connection, what)
    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    if not state and result.status in (pq.ExecStatus.FATAL_ERROR,
                                       pq.ExecStatus.BAD_RESPONSE):
        state = b"lost: " + connection.error_message
    rows = []
    for row in range(result.ntuples):
        values = [result.get_value(row, i) for i in range(result.nfields)]
        rows.append([None if v is None else v.hex() for v in values])
    return {"state": state.decode(), "rows": rows}


def main():
    connection = pq.PGconn.connect(sys.argv[1].encode())
    if connection.status != pq.ConnStatus.OK:
        sys.exit(connection.error_message.decode())
    for line in sys.stdin:
        print(json.dumps(answer(connection, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
