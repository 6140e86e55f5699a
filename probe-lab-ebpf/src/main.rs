//! A stand-in for Cilium's datapath: a test fixture of the lab, never shipped.
//!
//! IPv4 only, with the maps, lookup procedure, conntrack entries and notifications of Cilium 1.14. One object is
//! loaded once per endpoint and once for the host, with its own [`config::Config`]. Beyond it: IPv6, fragments,
//! tunnels, backends on other nodes, a pod that reaches itself through a service, session affinity, Maglev, proxies (a
//! redirect is notified, and the packet goes on to the pod).
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::inline_always,
    clippy::cast_sign_loss,
    clippy::needless_pass_by_value,
    reason = "one binary of private modules, its programs named as Cilium names them; inlined, since a tail call and calls of functions do not mix well; the \
              helpers return signed codes; a program takes its context by value"
)]

use aya_ebpf::{macros::classifier, programs::TcContext};

mod config;
mod conntrack;
mod egress;
mod endpoint;
mod host;
mod ingress;
mod maps;
mod masquerade;
mod notify;
mod packet;
mod policy;
mod reason;
mod seen;
mod service;

use notify::{EGRESS, INGRESS, Labels};
use seen::Program;

/// Set by the loader; lies in read-only data, so the verifier knows the values and cuts dead branches.
#[unsafe(no_mangle)]
static CONFIG: config::Config = config::Config {
    shape: 0,
    endpoint_id: 0,
    identity: 0,
    endpoint_ip_be: 0,
    node_ip_be: 0,
    uplink_ifindex: 0,
    verdict_filter: 0,
    aggregation: 0,
    report_flags: 0,
    masquerade: 0,
    native_net_be: 0,
    native_mask_be: 0,
    cilium_net_mac: [0; 8],
};

/// Reads a field of [`CONFIG`]; volatile, or the compiler would take the zeros above for good.
#[macro_export]
macro_rules! config {
    ($field:ident) => {{
        // SAFETY: a field of a static, initialised by the loader before the program runs.
        unsafe { core::ptr::read_volatile(&raw const $crate::CONFIG.$field) }
    }};
}

/// Numbers of Cilium's source files in drop notifications (1.14).
const FILE_HOST: u8 = 1;
const FILE_LXC: u8 = 2;

#[classifier]
pub fn cil_from_netdev(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::FromNetdev);
    let mut labels = Labels::default();
    host::from_netdev(&ctx, &mut labels)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, labels, FILE_HOST, INGRESS))
}

#[classifier]
pub fn cil_to_netdev(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::ToNetdev);
    host::to_netdev(&ctx)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, Labels::default(), FILE_HOST, EGRESS))
}

#[classifier]
pub fn cil_from_host(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::FromHost);
    let mut labels = Labels::default();
    host::from_host(&ctx, &mut labels)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, labels, FILE_HOST, EGRESS))
}

/// At `cilium_host` and `cilium_net`: the host firewall is off, so everything passes.
#[classifier]
pub fn cil_to_host(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::ToHost);
    aya_ebpf::bindings::TC_ACT_OK
}

#[classifier]
pub fn cil_from_container(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::FromContainer);
    let mut labels = Labels::default();
    egress::from_container(&ctx, &mut labels)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, labels, FILE_LXC, EGRESS))
}

#[classifier]
pub fn cil_to_container(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::ToContainer);
    let mut labels = Labels::default();
    ingress::to_container(&ctx, &mut labels)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, labels, FILE_LXC, INGRESS))
}

#[classifier]
pub fn handle_policy(ctx: TcContext) -> i32 {
    seen::count(&ctx, Program::Policy);
    let mut labels = Labels::default();
    ingress::handle_policy(&ctx, &mut labels)
        .unwrap_or_else(|reason| notify::drop(&ctx, reason, labels, FILE_LXC, INGRESS))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel loads GPL-only helpers for programs that declare this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
