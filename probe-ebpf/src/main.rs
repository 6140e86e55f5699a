//! plsprobe's eBPF programs: classifiers beside Cilium's, its notifications, and the kernel's drops.
//!
//! They only look. Every classifier passes every packet on (`TC_ACT_UNSPEC`), nothing writes to a packet, its mark or
//! its control block, and nothing here knows more of Cilium than the bytes of a notification.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a call would pass its arguments over a stack of 512 bytes for all frames"
)]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros hand a program its context by value")]

mod emit;
mod event;
mod filter;
mod kernel;
mod kfree;
mod maps;
mod parse;
mod payload;
mod socket;
mod stack;
mod stream;
mod tc;

/// What user space compares before it attaches anything; see [`probe_common::WIRE_VERSION`].
#[unsafe(no_mangle)]
static PLSPROBE_WIRE_VERSION: u32 = probe_common::WIRE_VERSION;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel loads GPL-only helpers for programs that declare this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
