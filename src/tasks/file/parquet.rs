//! Rows of a Parquet file, with their nested columns.

use super::parquet_limits;
use super::records::Record;
use crate::error::{Error, Result};
use crate::tasks::json::{Json, Object};
use ::parquet::data_type::Decimal;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};
use bytes::Bytes;
use num_bigint::BigInt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Reads every row.
///
/// # Errors
/// [`Error::is_format`] for a damaged file, and for one whose sizes its length cannot bear.
pub(super) fn read(bytes: Vec<u8>) -> Result<Vec<Record>> {
    parquet_limits::check(&bytes)?;
    // The crate panics on some damaged files.
    let rows = catch_unwind(AssertUnwindSafe(|| rows(Bytes::from(bytes))));
    rows.unwrap_or_else(|_| Err(Error::format("not a readable Parquet file: its reader panicked")))
}

fn rows(bytes: Bytes) -> Result<Vec<Record>> {
    let most = parquet_limits::most_unpacked(bytes.len());
    let file = SerializedFileReader::new(bytes).map_err(broken)?;
    let mut records = Vec::new();
    let mut unpacked = 0;
    for (row, number) in file.get_row_iter(None).map_err(broken)?.zip(1..) {
        let row = row.map_err(|e| broken(e).at(format!("row {number}")))?;
        let fields = object(&row);
        unpacked += size(&fields);
        if unpacked > most {
            return Err(Error::format(format!("its rows unpack to more than {most} bytes")));
        }
        records.push(Record { number, fields });
    }
    Ok(records)
}

fn broken(error: ParquetError) -> Error {
    Error::format(format!("not a readable Parquet file: {error}"))
}

/// About how many bytes a record takes in memory.
fn size(fields: &Object) -> usize {
    let of = |value: &Json| match value {
        Json::Null | Json::Bool(_) => 0,
        Json::Number(text) | Json::Text(text) => text.len(),
        Json::List(items) => items.iter().map(|item| size_of::<Json>() + nested(item)).sum(),
        Json::Object(fields) => size(fields),
    };
    fields.iter().map(|(name, value)| name.len() + 2 * size_of::<Json>() + of(value)).sum()
}

fn nested(value: &Json) -> usize {
    size(&Object::from_iter([(String::new(), value.clone())]))
}

fn object(row: &Row) -> Object {
    row.get_column_iter().map(|(name, value)| (name.clone(), json(value))).collect()
}

/// A value as JSON: numbers with all their digits, dates and times as the crate writes them, binary as text or in hexadecimal.
fn json(value: &Field) -> Json {
    let number = |text: String| Json::Number(text);
    match value {
        Field::Null => Json::Null,
        Field::Bool(value) => Json::Bool(*value),
        Field::Byte(value) => number(value.to_string()),
        Field::Short(value) => number(value.to_string()),
        Field::Int(value) => number(value.to_string()),
        Field::Long(value) => number(value.to_string()),
        Field::UByte(value) => number(value.to_string()),
        Field::UShort(value) => number(value.to_string()),
        Field::UInt(value) => number(value.to_string()),
        Field::ULong(value) => number(value.to_string()),
        Field::Float16(value) => float(f64::from(*value), format!("{:?}", f32::from(*value))),
        Field::Float(value) => float(f64::from(*value), format!("{value:?}")),
        Field::Double(value) => float(*value, format!("{value:?}")),
        Field::Decimal(value) => decimal(value),
        Field::Str(text) => Json::Text(text.clone()),
        Field::Bytes(bytes) => Json::Text(match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.to_owned(),
            Err(_) => hexadecimal(bytes.data()),
        }),
        Field::Group(row) => Json::Object(object(row)),
        Field::ListInternal(list) => Json::List(list.elements().iter().map(json).collect()),
        Field::MapInternal(map) => {
            let name = |key: &Field| match json(key) {
                Json::Text(text) => text,
                other => other.to_string(),
            };
            Json::Object(
                map.entries().iter().map(|(key, value)| (name(key), json(value))).collect(),
            )
        }
        date_or_time => Json::Text(date_or_time.to_string()),
    }
}

/// The shortest decimal that is read as the same float. JSON has no number for what is not finite.
fn float(value: f64, text: String) -> Json {
    if value.is_finite() { Json::Number(text) } else { Json::Text(text) }
}

/// Bytes of the longest decimal that is written as a number; Decimal256 has 32.
const LONGEST_DECIMAL: usize = 256;

/// `unscaled * 10^-scale`, exactly, with as many decimals as the column has.
fn decimal(value: &Decimal) -> Json {
    let bytes = value.data();
    if bytes.len() > LONGEST_DECIMAL {
        return Json::Text(hexadecimal(bytes));
    }
    let unscaled = BigInt::from_signed_bytes_be(bytes);
    let digits = unscaled.magnitude().to_string();
    let scale = usize::try_from(value.scale()).unwrap_or(0);
    if scale > 4 * LONGEST_DECIMAL {
        return Json::Number(format!("{unscaled}e-{scale}"));
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    let sign = if unscaled.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    let point = if part.is_empty() { "" } else { "." };
    Json::Number(format!("{sign}{whole}{point}{part}"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by pyarrow (`tests/parquet/make.py`), one per codec.
    const FILES: [&[u8]; 4] = [
        include_bytes!("../../../tests/parquet/none.parquet"),
        include_bytes!("../../../tests/parquet/snappy.parquet"),
        include_bytes!("../../../tests/parquet/gzip.parquet"),
        include_bytes!("../../../tests/parquet/zstd.parquet"),
    ];

    const ROWS: [&str; 3] = [
        concat!(
            r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"1+1?"}],"#,
            r#""reward_model":{"ground_truth":"2","style":"rule"},"ability":"MATH","small":-128,"#,
            r#""unsigned":18446744073709551615,"signed":-9223372036854775808,"double":0.1,"single":0.1,"#,
            r#""decimal":0.10000000000000000001,"#,
            r#""wide":111111111111111111111111111111111111111111111111111111111111.25,"whole":42,"yes":true,"#,
            r#""day":"2024-02-29","bytes":"text","nested":[[1,2],[]],"map":{"a":1,"b":null}}"#
        ),
        concat!(
            r#"{"prompt":[{"role":"user","content":"é\n"}],"reward_model":{"ground_truth":"x","style":null},"#,
            r#""ability":"MATH","small":127,"unsigned":0,"signed":9223372036854775807,"double":"NaN","#,
            r#""single":16777216.0,"decimal":-123456789012345678.50000000000000000000,"wide":-0.01,"whole":-7,"#,
            r#""yes":false,"day":null,"bytes":"ff00","nested":[],"map":{}}"#
        ),
        concat!(
            r#"{"prompt":[],"reward_model":null,"ability":null,"small":null,"unsigned":null,"signed":null,"#,
            r#""double":-1e300,"single":null,"decimal":null,"wide":null,"whole":null,"yes":null,"day":null,"#,
            r#""bytes":null,"nested":null,"map":null}"#
        ),
    ];

    #[test]
    fn every_codec_and_type() {
        for file in FILES {
            let rows = read(file.to_vec()).unwrap();
            let written: Vec<String> =
                rows.iter().map(|row| Json::Object(row.fields.clone()).to_string()).collect();
            assert_eq!(written, ROWS);
            assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1, 2, 3]);
        }
    }

    #[test]
    fn a_file_that_was_cut_off_is_told() {
        for file in FILES {
            for length in (4..file.len()).step_by(7) {
                let error = read(file[..length].to_vec()).unwrap_err();
                assert!(error.to_string().contains("cut off"), "{length}: {error}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_damage_panics_or_takes_long(
            which in 0..FILES.len(),
            at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut file = FILES[which].to_vec();
            for (index, byte) in at {
                let index = index.index(file.len());
                file[index] = byte;
            }
            if let Err(error) = read(file) {
                prop_assert!(error.is_format() || error.is_unsupported(), "{error}");
            }
        }
    }
}
