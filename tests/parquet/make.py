"""Writes the Parquet files of the tests, with pyarrow: make.py FOLDER

The rows are those that the tests of src/tasks/file/parquet.rs expect. One file per codec and version of pages.
"""
import datetime
import decimal
import sys

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
COLUMNS = {
    "prompt": (pa.list_(TURN), [[{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}], [{"role": "user", "content": "é\n"}], []]),
    "reward_model": (pa.struct([("ground_truth", pa.string()), ("style", pa.string())]), [{"ground_truth": "2", "style": "rule"}, {"ground_truth": "x", "style": None}, None]),
    "ability": (pa.dictionary(pa.int32(), pa.string()), ["MATH", "MATH", None]),
    "small": (pa.int8(), [-128, 127, None]),
    "unsigned": (pa.uint64(), [2**64 - 1, 0, None]),
    "signed": (pa.int64(), [-(2**63), 2**63 - 1, None]),
    "double": (pa.float64(), [0.1, float("nan"), -1e300]),
    "single": (pa.float32(), [0.1, 16777216.0, None]),
    "decimal": (pa.decimal128(38, 20), [decimal.Decimal("0.10000000000000000001"), decimal.Decimal("-123456789012345678.5"), None]),
    "wide": (pa.decimal256(70, 2), [decimal.Decimal("1" * 60 + ".25"), decimal.Decimal("-0.01"), None]),
    "whole": (pa.decimal128(10, 0), [decimal.Decimal(42), decimal.Decimal(-7), None]),
    "yes": (pa.bool_(), [True, False, None]),
    "day": (pa.date32(), [datetime.date(2024, 2, 29), None, None]),
    "bytes": (pa.binary(), [b"text", b"\xff\x00", None]),
    "nested": (pa.list_(pa.list_(pa.int32())), [[[1, 2], []], [], None]),
    "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1), ("b", None)], [], None]),
}

table = pa.table({name: pa.array(values, kind) for name, (kind, values) in COLUMNS.items()})
for codec, version in [("none", "1.0"), ("snappy", "1.0"), ("gzip", "1.0"), ("zstd", "2.0")]:
    pq.write_table(table, f"{sys.argv[1]}/{codec}.parquet", compression=codec, data_page_version=version, write_statistics=False, store_schema=False)
