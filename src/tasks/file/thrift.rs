//! Thrift's compact protocol, as far as it takes to see what sizes a Parquet file claims. Nothing is allocated for a claim:
//! every value that is kept has at least one byte of its own in the input.

use crate::error::{Error, Result};

/// The deepest nesting of structs and lists that is read; Parquet's own structs need 8.
const DEEPEST: usize = 24;

/// A value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A whole number of any width.
    Int(i64),
    /// A list or a set.
    List(Vec<Value>),
    /// A struct: its fields by their numbers.
    Struct(Vec<(i16, Value)>),
    /// Anything whose content does not matter here.
    Other,
}

impl Value {
    /// A field of a struct.
    pub(super) fn field(&self, number: i16) -> Option<&Value> {
        let Value::Struct(fields) = self else { return None };
        fields.iter().find(|(own, _)| *own == number).map(|(_, value)| value)
    }

    /// A field of a struct that is a whole number.
    pub(super) fn int(&self, number: i16) -> Option<i64> {
        match self.field(number) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A field of a struct that is a list; an absent one is empty.
    pub(super) fn list(&self, number: i16) -> &[Value] {
        match self.field(number) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }
}

/// The types of values, as the protocol numbers them.
mod kind {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const MAP: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
    pub(super) const UUID: u8 = 13;
}

/// Reads a struct from the begin of some bytes; also gives how many it took.
///
/// # Errors
/// [`Error::is_format`] where the bytes are no struct.
pub(super) fn structure(bytes: &[u8]) -> Result<(Value, usize)> {
    let mut input = Input { rest: bytes };
    let value = input.structure(0)?;
    Ok((value, bytes.len() - input.rest.len()))
}

struct Input<'a> {
    rest: &'a [u8],
}

fn broken() -> Error {
    Error::format("not a readable Parquet file: its metadata are damaged")
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.rest.split_first().ok_or_else(broken)?;
        self.rest = rest;
        Ok(*first)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let count = usize::try_from(count).map_err(|_| broken())?;
        self.rest = self.rest.get(count..).ok_or_else(broken)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(broken())
    }

    fn zigzag(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn structure(&mut self, depth: usize) -> Result<Value> {
        let (mut fields, mut number) = (Vec::new(), 0i16);
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(Value::Struct(fields));
            }
            number = match head >> 4 {
                0 => i16::try_from(self.zigzag()?).map_err(|_| broken())?,
                step => number.checked_add(i16::from(step)).ok_or_else(broken)?,
            };
            let value = match head & 0xf {
                // A field's truth is in its head.
                kind::TRUE | kind::FALSE => Value::Other,
                other => self.value(other, depth + 1)?,
            };
            fields.push((number, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            return Err(broken());
        }
        match kind {
            kind::TRUE | kind::FALSE | kind::BYTE => self.skip(1)?,
            kind::I16..=kind::I64 => return self.zigzag().map(Value::Int),
            kind::DOUBLE => self.skip(8)?,
            kind::UUID => self.skip(16)?,
            kind::BINARY => {
                let length = self.varint()?;
                self.skip(length)?;
            }
            kind::LIST | kind::SET => {
                let head = self.byte()?;
                let length = match head >> 4 {
                    15 => self.varint()?,
                    few => u64::from(few),
                };
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(self.value(head & 0xf, depth + 1)?);
                }
                return Ok(Value::List(items));
            }
            kind::MAP => {
                let length = self.varint()?;
                let kinds = if length == 0 { 0 } else { self.byte()? };
                for _ in 0..length {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 0xf, depth + 1)?;
                }
            }
            kind::STRUCT => return self.structure(depth),
            _ => return Err(broken()),
        }
        Ok(Value::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_struct_is_read() {
        // 1: i32 150; 3: list of two i64; 20: struct { 1: true }; 21: binary "ab".
        let bytes = [
            0x15, 0xac, 0x02, 0x29, 0x26, 0x01, 0x04, 0x0c, 0x28, 0x11, 0x00, 0x18, 0x02, b'a',
            b'b', 0x00, 9,
        ];
        let (value, taken) = structure(&bytes).unwrap();
        assert_eq!(taken, bytes.len() - 1);
        assert_eq!(value.int(1), Some(150));
        assert_eq!(value.list(3), [Value::Int(-1), Value::Int(2)]);
        assert_eq!(value.field(20), Some(&Value::Struct(vec![(1, Value::Other)])));
        assert_eq!((value.field(21), value.field(2)), (Some(&Value::Other), None));
    }

    #[test]
    fn claims_cost_nothing() {
        // A list of 2^60 structs, a binary of 2^60 bytes, structs in structs without end.
        for bytes in [
            &[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10, 0x00][..],
            &[0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10, 0x00],
            &[0x1c; 1000],
            &[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[],
        ] {
            assert!(structure(bytes).unwrap_err().is_format());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = structure(&bytes);
        }
    }
}
