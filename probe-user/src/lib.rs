//! plsprobe's user space: sources, attaching, rendering and the command line.

pub mod across;
pub mod agent;
pub mod attach;
pub mod causes;
pub mod cli;
pub mod doctor;
pub mod grpc;
mod pcap;
pub mod render;
mod selector;
pub mod sources;
mod sys;
pub mod target;
pub mod trace;
