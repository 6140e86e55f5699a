//! What user space asks and what a program answers, shared with the test by `#[path]`.

/// Questions of one batch.
pub const SLOTS: usize = 512;

/// The only value of the map `BATCH`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Batch {
    /// The slot that the next run of a program answers.
    pub next: u32,
    /// Questions and answers.
    pub slots: [Slot; SLOTS],
}

/// A question and the place for its answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Written by user space.
    pub query: Query,
    /// Written by the program.
    pub answer: Answer,
}

/// A packet at an endpoint; host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The remote security identity.
    pub identity: u32,
    /// Destination port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// 1: from the endpoint.
    pub egress: u8,
    /// 1: an IPv4 fragment of which no one knows the ports.
    pub untracked_fragment: u8,
    /// 1: the node has addresses of both families (group F only).
    pub dual_stack: u8,
    /// The node's `cluster-id` (group F only).
    pub cluster_id: u8,
    /// Keeps the size a multiple of four without a hole.
    pub pad: u8,
}

/// The outcome; host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// 0: allowed; negative: minus the drop reason.
    pub result: i32,
    /// The authentication that is asked for, 0 if none; `ext_error` of a drop with -189.
    pub auth_type: u8,
    /// Number of the match type as in a policy verdict notification.
    pub match_type: u8,
    /// Where an allowed packet is redirected to, 0 if nowhere.
    pub proxy_port: u16,
    /// Tag of the entry that decided, 0 if none.
    pub chosen: u32,
    /// Tag of the entry that was found too and lost, 0 if none.
    pub loser: u32,
}

// No hole, so that user space may see the batch as plain bytes.
const _: () = assert!(size_of::<Query>() == 12 && size_of::<Answer>() == 16);
const _: () = assert!(size_of::<Batch>() == 4 + SLOTS * size_of::<Slot>());
