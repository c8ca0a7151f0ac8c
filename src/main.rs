//! The program `gradstone`.
fn main() {}
