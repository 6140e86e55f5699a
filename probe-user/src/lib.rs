//! plsprobe's user space: sources, attaching, rendering and the command line.

pub mod cli;
pub mod render;
pub mod sources;
pub mod target;
