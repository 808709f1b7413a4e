"""What the project wants of itself, by the name of a result.

A target is about the ratio where a result has one, about its value otherwise.
"""
import operator


class Target:
    def __init__(self, sign, bound, unit=""):
        self.text = f"{sign} {bound}{unit}"
        self.test = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}[sign]
        self.bound = bound

    def met(self, value):
        return self.test(value, self.bound)


TARGETS = {
    "scan_1_bulk": Target("<=", 2.3, "x"),
    "scan_1_rows": Target("<=", 3.8, "x"),
    "scan_4_bulk": Target("<=", 2.6, "x"),
    "faster_than_aes": Target(">=", 4, "x"),
    "faster_than_pgp": Target(">=", 500, "x"),
    "insert_select_4": Target(">=", 0.55, "x"),
    "insert_one": Target(">=", 0.95, "x"),
    "lookup_btree": Target(">=", 0.95, "x"),
    "ilike_school": Target("<=", 5, " ms"),
    "ilike_all": Target("<=", 2.5, "x"),
    "order_school": Target("<=", 2, "x"),
    "bytes_12": Target("<=", 66, " bytes"),
    "cold_schools": Target("<=", 10, " s"),
    "warm_wakeups": Target("<=", 0),
    "erase_large": Target("<", 2, " s"),
    "erase_ratio": Target("<=", 1.5, "x"),
    "added_latency": Target("<=", 5, " us"),
    "hook_tps": Target(">=", 0.98, "x"),
}
