//! As much of gRPC as plsprobe needs, over `h2`: calls with one message, answered by one or many.
//!
//! Source: gRPC's `doc/PROTOCOL-HTTP2.md` and `doc/statuscodes.md`.

pub mod client;
mod connection;
mod frame;
pub mod server;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod unix;

pub use status::{Code, Status};
