//! A run's numbers as a table: a line per step, a column for everything that any step measured.

use crate::error::{Error, Result};
use crate::train::metrics::Record;
use std::collections::BTreeSet;
use std::io::Write;

/// Writes a header and a line per record. What a step did not measure is empty; what was not finite is `nan`.
///
/// # Errors
/// [`Error::is_io`].
pub fn write(records: &[Record], out: impl Write) -> Result<()> {
    let io = |e: csv::Error| Error::io("writing a table", std::io::Error::from(e));
    let names: BTreeSet<&str> =
        records.iter().flat_map(|record| record.values.keys().map(String::as_str)).collect();
    let mut table = csv::Writer::from_writer(out);
    table.write_record(["step", "phase"].into_iter().chain(names.iter().copied())).map_err(io)?;
    for record in records {
        let value = |name: &&str| match record.values.get(*name) {
            None => String::new(),
            Some(value) if value.is_finite() => value.to_string(),
            Some(_) => "nan".to_owned(),
        };
        let start = [record.step.to_string(), record.phase.clone()];
        table.write_record(start.into_iter().chain(names.iter().map(value))).map_err(io)?;
    }
    table.flush().map_err(|e| Error::io("writing a table", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_name_is_a_column() {
        let record = |step, values: &[(&str, f64)]| Record {
            step,
            phase: "rl".to_owned(),
            values: values
                .iter()
                .map(|(name, v)| ((*name).to_owned(), *v))
                .collect::<BTreeMap<_, _>>(),
        };
        let mut out = Vec::new();
        let records = [record(1, &[("loss", 0.5)]), record(2, &[("a,b", 2.0), ("loss", f64::NAN)])];
        write(&records, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "step,phase,\"a,b\",loss\n1,rl,,0.5\n2,rl,2,nan\n"
        );
    }
}
