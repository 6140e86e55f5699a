//! How many packets each program was given: what a load compares with what it has sent.
use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};

use crate::{
    config::COUNTED,
    packet::{ETH_P_IP, UDP, eth_proto},
};

/// Offset of IPv4's protocol behind an Ethernet header.
const PROTOCOL_OFF: usize = 14 + 9;

/// Pinned beside Cilium's maps, not among them: one for all objects, kept when they are loaded anew.
#[map(name = "standin_seen")]
static SEEN: PerCpuArray<u64> = PerCpuArray::pinned(COUNTED.len() as u32 * 2, 0);

/// A place in [`COUNTED`].
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Program {
    FromNetdev,
    ToNetdev,
    FromHost,
    ToHost,
    FromContainer,
    ToContainer,
    Policy,
}

/// Counts one packet.
#[inline(always)]
pub fn count(ctx: &TcContext, program: Program) {
    let slot = program as u32 * 2;
    add_one(slot);
    let is_udp = eth_proto(ctx) == Ok(ETH_P_IP) && ctx.load::<u8>(PROTOCOL_OFF) == Ok(UDP);
    if is_udp {
        add_one(slot + 1);
    }
}

#[inline(always)]
fn add_one(slot: u32) {
    if let Some(count) = SEEN.get_ptr_mut(slot) {
        // SAFETY: this CPU's own slot; classifiers run with softirqs off, so none interrupts another on a CPU.
        unsafe { *count += 1 };
    }
}
