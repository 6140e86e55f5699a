//! A second, slow implementation of the policy lookup over raw bytes, written from the ABI reference alone, and what the
//! crate's own must have in common with it.

mod generate;
mod lookup;
mod properties;
mod subject;
mod tables;
mod vectors;
