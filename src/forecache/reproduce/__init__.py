"""The papers' tables as TOML files, measured again on any model.

table = open_table("goc-table-3")
result = reproduce(table, open_testbed(table), "out/goc-table-3", Protocol(samples=300))
print("\\n".join(result.markdown()))
"""

from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.result import Reproduction
from forecache.reproduce.table import Table, open_table
from forecache.reproduce.testbed import Testbed, TestbedOptions, open_testbed
from forecache.reproduce.worker import Protocol

__all__ = [
    "Protocol",
    "Reproduction",
    "Table",
    "Testbed",
    "TestbedOptions",
    "open_table",
    "open_testbed",
    "reproduce",
]
