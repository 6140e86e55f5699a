//! plsprobe's user space: sources, attaching, rendering and the command line.

pub mod sources;
