//! The messages of `plsprobe.v1.Agent`, which the command line speaks with an agent.

use prost::{Message, Oneof};

/// Traces, until time, count or the client ends it.
pub const TRACE: &str = "/plsprobe.v1.Agent/Trace";
/// Ends a trace that this client began, which is then summed up.
pub const STOP: &str = "/plsprobe.v1.Agent/Stop";
/// What time it is there.
pub const NOW: &str = "/plsprobe.v1.Agent/Now";

/// What is asked of packets.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TraceRequest {
    /// TARGET.
    #[prost(string, tag = "1")]
    pub dst: String,
    /// SRCs; empty is any.
    #[prost(string, repeated, tag = "2")]
    pub src: Vec<String>,
    /// Ports and protocols; empty is any.
    #[prost(message, repeated, tag = "3")]
    pub ports: Vec<Ports>,
    /// When to end, in milliseconds.
    #[prost(uint64, tag = "4")]
    pub duration_ms: u64,
    /// After how many flows to end; 0 is never.
    #[prost(uint64, tag = "5")]
    pub count: u64,
    /// JSON lines instead of text.
    #[prost(bool, tag = "6")]
    pub json: bool,
    /// What is kept of the last so many milliseconds, instead of what comes; 0 is what comes.
    #[prost(uint64, tag = "7")]
    pub since_ms: u64,
    /// A number of the client's own by which it can end the trace; 0 for one that it does not end.
    #[prost(uint64, tag = "8")]
    pub id: u64,
}

/// Which trace is to end.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StopRequest {
    /// The number that the trace was given.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// Nothing is answered.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StopAnswer {}

/// Ports of one protocol.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ports {
    /// IP protocol number.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The first.
    #[prost(uint32, tag = "2")]
    pub first: u32,
    /// The last.
    #[prost(uint32, tag = "3")]
    pub last: u32,
}

/// What a trace brings.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TraceAnswer {
    /// One of them; `None` for what a newer agent sends.
    #[prost(oneof = "Answer", tags = "1, 2, 3")]
    pub answer: Option<Answer>,
}

/// The kinds of [`TraceAnswer`].
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Answer {
    /// Whole lines for standard output.
    #[prost(bytes = "vec", tag = "1")]
    Out(Vec<u8>),
    /// A line beside them.
    #[prost(string, tag = "2")]
    Notice(String),
    /// It has ended.
    #[prost(message, tag = "3")]
    End(End),
}

/// How a trace ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct End {
    /// The exit code: 0 allowed, 1 dropped, 2 error, 3 inconclusive.
    #[prost(int32, tag = "1")]
    pub exit: i32,
    /// The error, of 2.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// Nothing is asked.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NowRequest {}

/// The node's clocks at one moment.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NowAnswer {
    /// `CLOCK_MONOTONIC` in nanoseconds, which the times in flows are of.
    #[prost(uint64, tag = "1")]
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub unix_ns: u64,
    /// The node's name.
    #[prost(string, tag = "3")]
    pub node: String,
}
