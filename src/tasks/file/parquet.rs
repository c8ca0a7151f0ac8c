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
        Field::Decimal(value) => number(decimal(value)),
        Field::Str(text) => Json::Text(text.clone()),
        Field::Bytes(bytes) => Json::Text(match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.data().iter().map(|byte| format!("{byte:02x}")).collect(),
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

/// `unscaled * 10^-scale`, exactly, with as many decimals as the column has.
fn decimal(value: &Decimal) -> String {
    let unscaled = BigInt::from_signed_bytes_be(value.data());
    let digits = unscaled.magnitude().to_string();
    let scale = usize::try_from(value.scale()).unwrap_or(0);
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    let sign = if unscaled.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}
