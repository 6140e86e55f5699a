//! Cilium's lookups, 1.13 to 1.20, in the kernel: the judge of `probe-model`'s simulator in a test.
//!
//! Written from the same description as the simulator and apart from it, on maps of the true type and sizes, so that
//! hashing and longest-prefix matching are the kernel's own. No program touches a packet: each run answers the next
//! question in `BATCH`, and `BPF_PROG_TEST_RUN` repeats it until all are answered.
//!
//! `entry` reads values; `ordered` and `ranked` hold the procedures; `slot` is what user space shares.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::inline_always,
    reason = "one binary of private modules; inlined, as the verifier follows map values through no call"
)]

mod entry;
mod ordered;
mod ranked;
mod slot;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::{classifier, map},
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    programs::TcContext,
};

use crate::{
    entry::{Entry, NIL},
    slot::{Answer, Batch, Query, SLOTS},
};

const DROP_POLICY: i32 = 133;
const DROP_FRAG_NOSUPPORT: i32 = 157;
const DROP_POLICY_DENY: i32 = 181;
const DROP_POLICY_AUTH_REQUIRED: i32 = 189;

/// The numbers are those of policy verdict notifications; 0 is no match.
#[repr(u8)]
#[derive(Clone, Copy)]
enum MatchType {
    L3Only = 1,
    L3L4 = 2,
    L4Only = 3,
    All = 4,
    L3Proto = 5,
    ProtoOnly = 6,
}

/// `bpf-policy-map-max`.
const MAX_ENTRIES: u32 = 16384;

#[map]
static BATCH: Array<Batch> = Array::with_max_entries(1, 0);
#[map]
static HASH_24: HashMap<[u8; 8], [u8; 24]> = HashMap::with_max_entries(MAX_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static TRIE_24: LpmTrie<[u8; 8], [u8; 24]> = LpmTrie::with_max_entries(MAX_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static TRIE_12: LpmTrie<[u8; 8], [u8; 12]> = LpmTrie::with_max_entries(MAX_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static TRIE_8: LpmTrie<[u8; 8], [u8; 8]> = LpmTrie::with_max_entries(MAX_ENTRIES, BPF_F_NO_PREALLOC);

/// Declares tries in which user space itself looks up: what is asked of them is only the longest prefix.
macro_rules! tries {
    ($($name:ident<$data:literal, $value:literal>, $max:literal;)*) => {
        $(
            #[map]
            static $name: LpmTrie<[u8; $data], [u8; $value]> = LpmTrie::with_max_entries($max, BPF_F_NO_PREALLOC);
        )*
    };
}
// Sizes in bytes: what follows `prefixlen`, and the value.
tries! {
    IPCACHE_12<20, 12>, 512_000;
    IPCACHE_24<20, 24>, 512_000;
    SOURCE_RANGE_4<8, 1>, 65536;
    SOURCE_RANGE_6<20, 1>, 65536;
}

/// 1.13.
#[classifier]
pub fn lookup_a(_ctx: TcContext) -> i32 {
    answer_next(|query| {
        ordered::a(query, |identity, protocol, port| {
            let key = plain_key(identity, port, protocol, query.egress);
            // SAFETY: nobody writes to the map while a batch runs.
            unsafe { HASH_24.get(key) }.map_or(NIL, entry::wildcard_bits)
        })
    })
}

/// 1.14.0 to 1.16.3.
#[classifier]
pub fn lookup_b(_ctx: TcContext) -> i32 {
    answer_next(|query| ordered::b(query, |id| longest(&TRIE_24, id, query, entry::wildcard_bits)))
}

/// 1.16.4 to 1.16.x.
#[classifier]
pub fn lookup_c(_ctx: TcContext) -> i32 {
    answer_next(|query| ordered::c(query, |id| longest(&TRIE_24, id, query, entry::prefix_length)))
}

/// 1.17.
#[classifier]
pub fn lookup_d_17(_ctx: TcContext) -> i32 {
    answer_next(|query| ranked::d(query, |id| longest(&TRIE_24, id, query, entry::proxy_priority)))
}

/// 1.18.
#[classifier]
pub fn lookup_d_18(_ctx: TcContext) -> i32 {
    answer_next(|query| ranked::d(query, |id| longest(&TRIE_8, id, query, entry::counters_apart)))
}

/// 1.19.
#[classifier]
pub fn lookup_e(_ctx: TcContext) -> i32 {
    answer_next(|query| ranked::e(query, |id| longest(&TRIE_12, id, query, entry::precedence)))
}

/// 1.20.
#[classifier]
pub fn lookup_f(_ctx: TcContext) -> i32 {
    answer_next(|query| ranked::f(query, |id| longest(&TRIE_12, id, query, entry::precedence)))
}

/// Answers the question whose turn it is. Returns 0, or 1 where there is no batch.
#[inline(always)]
fn answer_next(lookup: impl Fn(&Query) -> Answer) -> i32 {
    let Some(batch) = BATCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: a live value of an array map, null-checked above; user space waits for the batch, so nobody else
    // touches it.
    let batch = unsafe { &mut *batch };
    let slot = &mut batch.slots[batch.next as usize % SLOTS];
    slot.answer = lookup(&slot.query);
    batch.next += 1;
    0
}

/// `struct policy_key` @1.13: identity, port in network order, protocol, direction.
#[inline(always)]
fn plain_key(identity: u32, port: u16, protocol: u8, egress: u8) -> [u8; 8] {
    let (id, port) = (identity.to_le_bytes(), port.to_be_bytes());
    [id[0], id[1], id[2], id[3], port[0], port[1], protocol, egress]
}

/// The longest entry for `identity` and the packet, always asked for with all 64 bits after `prefixlen`.
#[inline(always)]
fn longest<const N: usize>(
    trie: &LpmTrie<[u8; 8], [u8; N]>,
    identity: u32,
    query: &Query,
    read: fn(&[u8; N]) -> Entry,
) -> Entry {
    let (id, port) = (identity.to_le_bytes(), query.port.to_be_bytes());
    let data = [id[0], id[1], id[2], id[3], query.egress, query.protocol, port[0], port[1]];
    trie.get(Key::new(64, data)).map_or(NIL, read)
}

/// The answer of the entry that decides, which asks for `auth_type`.
#[inline(always)]
fn verdict(entry: Entry, kind: MatchType, auth_type: u8, loser: Entry) -> Answer {
    let mut answer = Answer {
        result: 0,
        auth_type: 0,
        match_type: kind as u8,
        proxy_port: 0,
        chosen: entry.tag,
        loser: loser.tag,
    };
    if entry.deny {
        answer.result = -DROP_POLICY_DENY;
        return answer;
    }
    answer.proxy_port = entry.proxy_port;
    if auth_type != 0 {
        answer.result = -DROP_POLICY_AUTH_REQUIRED;
        answer.auth_type = auth_type;
    }
    answer
}

/// The answer where no entry was found.
#[inline(always)]
fn miss(query: &Query) -> Answer {
    let reason = if query.untracked_fragment != 0 { DROP_FRAG_NOSUPPORT } else { DROP_POLICY };
    Answer { result: -reason, auth_type: 0, match_type: 0, proxy_port: 0, chosen: 0, loser: 0 }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel loads GPL-only helpers for programs that declare this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
