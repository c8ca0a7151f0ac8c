//! What a Parquet file claims about its sizes, against its length, before anything is allocated for a claim.
//!
//! A page's header says how large the page is when it is unpacked, and the reader reserves as much; a few bytes can claim
//! gigabytes. The nesting of the columns and the lengths of lists are claims of the same kind.

use super::thrift::{Value, structure};
use crate::error::{Error, Result};

/// Bytes that a file of a length may unpack to: text that repeats is packed to a hundredth, hardly to less.
pub(super) fn most_unpacked(length: usize) -> usize {
    (64 << 20) + length.saturating_mul(256)
}

/// The deepest nesting of columns; a list of structs adds three levels.
const DEEPEST: usize = 64;

/// What a value costs at least once it is read, bytes.
const PER_VALUE: u64 = 16;

/// Checks a whole file.
///
/// # Errors
/// [`Error::is_format`] naming the claim that cannot be true; [`Error::is_unsupported`] for an encrypted file.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let most = most_unpacked(bytes.len()) as u64;
    let metadata = metadata(bytes)?;
    check_schema(metadata.list(2))?;
    let too_large = |what: &str, claimed: u64| {
        let length = bytes.len();
        Error::format(format!(
            "its {what} claim {claimed} bytes, which {length} bytes of file cannot hold"
        ))
    };
    let rows = metadata.list(4).iter().map(|group| group.int(3).unwrap_or(0));
    for rows in rows.chain(metadata.int(3)) {
        let claimed = u64::try_from(rows).map_err(|_| negative())?.saturating_mul(PER_VALUE);
        if claimed > most {
            return Err(too_large("rows", claimed));
        }
    }
    let (mut unpacked, mut values) = (0u64, 0u64);
    for column in metadata.list(4).iter().flat_map(|group| group.list(1)) {
        let Some(column) = column.field(3) else { continue };
        for page in pages(bytes, column)? {
            unpacked = unpacked.saturating_add(page.unpacked);
            values = values.saturating_add(page.values.saturating_mul(PER_VALUE));
            if page.is_dictionary && page.values > page.unpacked {
                return Err(too_large("dictionaries", page.values));
            }
        }
        if unpacked > most || values > most {
            return Err(too_large("pages", unpacked.max(values)));
        }
    }
    Ok(())
}

fn negative() -> Error {
    Error::format("not a readable Parquet file: a size in its metadata is negative")
}

fn broken(what: &str) -> Error {
    Error::format(format!("not a readable Parquet file: {what}"))
}

/// The metadata at the end of the file.
fn metadata(bytes: &[u8]) -> Result<Value> {
    if bytes.ends_with(b"PARE") {
        return Err(Error::unsupported("an encrypted Parquet file"));
    }
    let cut_off = || broken("it does not end with PAR1: it was cut off");
    let before = bytes.strip_suffix(b"PAR1").ok_or_else(cut_off)?;
    let (before, length) = before.split_last_chunk::<4>().ok_or_else(cut_off)?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = before.len().checked_sub(length);
    let start = start.ok_or_else(|| broken("its metadata are longer than the file"))?;
    structure(&before[start..]).map(|(metadata, _)| metadata)
}

/// The columns are a tree, written from its root with the number of children of each node.
fn check_schema(elements: &[Value]) -> Result<()> {
    // How many children are still to come of each node above.
    let mut open: Vec<u64> = Vec::new();
    for (element, at) in elements.iter().zip(0..) {
        while open.last() == Some(&0) {
            open.pop();
        }
        match open.last_mut() {
            Some(left) => *left -= 1,
            None if at == 0 => {}
            None => return Err(broken("its columns are no tree")),
        }
        let children = u64::try_from(element.int(5).unwrap_or(0)).map_err(|_| negative())?;
        if children > elements.len() as u64 {
            return Err(broken("its columns are no tree"));
        }
        open.push(children);
        if open.len() > DEEPEST {
            return Err(broken(&format!("its columns are nested deeper than {DEEPEST} levels")));
        }
    }
    if open.iter().any(|left| *left > 0) {
        return Err(broken("its columns are no tree"));
    }
    Ok(())
}

/// What a page's header claims.
struct Page {
    unpacked: u64,
    values: u64,
    is_dictionary: bool,
}

/// The headers of a column's pages.
fn pages(bytes: &[u8], column: &Value) -> Result<Vec<Page>> {
    let size = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).map_err(|_| negative());
    let first = size(column.int(11).filter(|offset| *offset > 0).or(column.int(9)))?;
    let end = first.saturating_add(size(column.int(7))?);
    let outside = || broken("a column lies outside the file");
    let place = |at: u64| usize::try_from(at).map_err(|_| outside());
    let mut rest = bytes.get(place(first)?..place(end)?).ok_or_else(outside)?;
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let (header, length) = structure(rest)?;
        let packed = place(size(header.int(3))?)?;
        let dictionary = header.field(7);
        let counted = dictionary.or(header.field(5)).or(header.field(8));
        pages.push(Page {
            unpacked: size(header.int(2))?,
            values: size(counted.and_then(|header| header.int(1)))?,
            is_dictionary: dictionary.is_some(),
        });
        rest = rest.get(length..).and_then(|rest| rest.get(packed..)).ok_or_else(outside)?;
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zigzag and varint of a number.
    fn number(value: i64) -> Vec<u8> {
        let mut left = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while left > 0x7f {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    }

    /// A struct of `(number, kind, value)`, numbers rising by less than 16.
    fn structure_of(fields: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
        let (mut bytes, mut last) = (Vec::new(), 0);
        for (field, kind, value) in fields {
            bytes.push((field - last) << 4 | kind);
            bytes.extend(value);
            last = *field;
        }
        bytes.push(0);
        bytes
    }

    const I32: u8 = 5;
    const I64: u8 = 6;
    const LIST: u8 = 9;
    const STRUCT: u8 = 12;

    fn list_of(structs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0xf0 | STRUCT, structs.len() as u8];
        bytes.extend(structs.concat());
        bytes
    }

    /// A file whose only page claims `unpacked` bytes and `values` values, and whose columns have these numbers of children.
    fn file(rows: i64, unpacked: i64, values: i64, children: &[i64]) -> Vec<u8> {
        let counted = structure_of(&[(1, I32, number(values))]);
        let page = structure_of(&[
            (1, I32, number(2)),
            (2, I32, number(unpacked)),
            (3, I32, number(3)),
            (7, STRUCT, counted),
        ]);
        let body = [&b"PAR1"[..], &page, b"abc"].concat();
        let column = structure_of(&[(7, I64, number(body.len() as i64 - 4)), (9, I64, number(4))]);
        let chunk = structure_of(&[(3, STRUCT, column)]);
        let group = structure_of(&[(1, LIST, list_of(&[chunk])), (3, I64, number(rows))]);
        let schema: Vec<Vec<u8>> =
            children.iter().map(|count| structure_of(&[(5, I32, number(*count))])).collect();
        let metadata = structure_of(&[
            (2, LIST, list_of(&schema)),
            (3, I64, number(rows)),
            (4, LIST, list_of(&[group])),
        ]);
        let length = (metadata.len() as u32).to_le_bytes();
        [&body[..], &metadata, &length, b"PAR1"].concat()
    }

    #[test]
    fn claims_beyond_the_length_are_refused() {
        check(&file(2, 100, 3, &[1, 0])).unwrap();
        let gigabyte = 1 << 30;
        let deep: Vec<i64> = std::iter::repeat_n(1, 80).chain([0]).collect();
        for (file, says) in [
            (file(1 << 60, 100, 3, &[1, 0]), "its rows claim"),
            (file(-1, 100, 3, &[1, 0]), "is negative"),
            (file(2, gigabyte, 3, &[1, 0]), "its pages claim 1073741824 bytes"),
            (file(2, -1, 3, &[1, 0]), "is negative"),
            (file(2, 100, gigabyte, &[1, 0]), "its dictionaries claim"),
            (file(2, 100, 3, &[gigabyte, 0]), "its columns are no tree"),
            (file(2, 100, 3, &[2, 0]), "its columns are no tree"),
            (file(2, 100, 3, &[1, 0, 0]), "its columns are no tree"),
            (file(2, 100, 3, &deep), "nested deeper than 64 levels"),
            (b"PAR1\xff\xff\xff\x7fPAR1".to_vec(), "longer than the file"),
            (b"PAR1".to_vec(), "cut off"),
        ] {
            let error = check(&file).unwrap_err();
            assert!(error.is_format() && error.to_string().contains(says), "{says}: {error}");
        }
        assert!(check(b"PAR1\0\0\0\0PARE").unwrap_err().is_unsupported());
    }
}
