//! Records that cross from plsprobe's eBPF programs to user space.
#![no_std]
#![forbid(unsafe_code)]

/// Version of the record layouts in this crate; user space refuses an eBPF object that exports another.
pub const WIRE_VERSION: u32 = 1;
