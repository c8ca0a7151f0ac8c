//! Draws reward and held-out accuracy of a run as one SVG, as in the README:
//!
//! ```sh
//! cargo run --release --example picture -- runs/arithmetic-001 docs/images/training-run.svg
//! ```

use gradstone::train::{RunDir, metrics, report};
use gradstone::{Error, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let mut paths = std::env::args().skip(1).map(PathBuf::from);
    let (Some(run), Some(picture)) = (paths.next(), paths.next()) else {
        return Err(Error::invalid("give a run directory and the SVG to write"));
    };
    let records = metrics::read(&RunDir::open(&run)?.metrics_path())?;
    std::fs::write(&picture, report::picture(&records))
        .map_err(|e| Error::io(format!("writing {}", picture.display()), e))
}
