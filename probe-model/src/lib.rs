//! Cilium's layouts, its datapath's decisions, and why: bytes in, values out. No I/O, no clock, any OS.
#![forbid(unsafe_code)]

pub mod cilium;
pub mod explain;
pub mod intent;
pub mod lint;
pub mod netfilter;
pub mod path;
pub mod proxy_protocol;
pub mod simulate;
pub mod tuple;
pub mod world;
