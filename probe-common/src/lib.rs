//! Records that cross from plsprobe's eBPF programs to user space, and the settings that cross the other way.
//!
//! Everything is `#[repr(C)]` with its padding written out and its layout asserted, so that both sides read the
//! same bytes. Ports, sequence numbers and lengths are in host order; addresses are the bytes of the packet.
#![no_std]
#![forbid(unsafe_code)]

mod config;
mod packet;
mod record;
mod stream;

pub use config::{
    AddressSet, CAPTURE_MAX, Capture, Config, KernelOffsets, NamespaceSet, PORTS_ANY, PortKey, PrefixKey,
};
pub use packet::{
    FIBONACCI, FRAGMENT, FRAGMENT_LATER, Packet, PacketFamily, Tunnel, address_words, halves, payload_hash,
};
pub use record::{
    Counter, DropRecord, EVENT_META_MAX, EVENT_PACKET_MAX, EventRecord, HookPoint, PAYLOAD_MAX, PacketRecord,
    PayloadRecord, RecordHeader, RecordKind, SocketPoint, SocketRecord,
};
pub use stream::{Stream, StreamSlot};

/// Version of the layouts in this crate. The eBPF object exports it as `PLSPROBE_WIRE_VERSION`;
/// user space refuses an object that exports another, before anything is attached.
pub const WIRE_VERSION: u32 = 9;
