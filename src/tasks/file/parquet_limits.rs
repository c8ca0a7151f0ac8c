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
