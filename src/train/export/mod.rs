//! A run's numbers in the formats of other programs: event files of TensorBoard ([`tensorboard`]) and tables ([`csv`]).

pub mod csv;
pub mod tensorboard;
