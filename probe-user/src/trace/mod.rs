//! `plsprobe trace`: records in, one judged flow after another out.

pub mod kernel;
