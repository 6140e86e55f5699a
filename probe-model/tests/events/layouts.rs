//! Each field against `cilium-abi-offsets.tsv`, and every value there and back.

use std::collections::BTreeSet;

use fixtures::Offset;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{
    Notification, NotifyFlags, ObservationPoint, Sample, TraceReason, XlatePoint,
};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::MatchType;
use probe_model::cilium::release::Release;
use probe_model::cilium::{Direction, EndpointId};

use super::{LAYOUTS, Random, build, header_mut};

/// What a row of the table is to a decoder.
enum Role {
    /// A field: values of it that differ from the base in all its bits, taken together.
    Field(Vec<Notification>),
    /// Which notification, and which layout: another value is another notification, or none.
    Discriminator,
    /// Always 0, and not read.
    Padding,
}

fn role(base: &Notification, row: &Offset) -> Role {
    match row.field {
        "type" | "version" => return Role::Discriminator,
        // A verdict has none: its header's is 0.
        "subtype" if row.structure == "policy_verdict_notify" => return Role::Padding,
        field if field.starts_with("pad") => return Role::Padding,
        _ => {}
    }
    let mut full = *base;
    let values = match (row.field, &mut full) {
        // Of two bits, of which 3 is no direction.
        ("dir", Notification::PolicyVerdict(verdict)) => {
            verdict.direction = Direction::Egress;
            vec![full]
        }
        // Of three bits, of which 7 is no match type.
        ("match_type", Notification::PolicyVerdict(_)) => {
            let with = |number| {
                let mut value = *base;
                let Notification::PolicyVerdict(verdict) = &mut value else { unreachable!() };
                verdict.match_type = MatchType::from_number(number).unwrap();
                value
            };
            vec![with(3), with(4)]
        }
        (field, value) => {
            assert!(fill(value, field), "`{}` has no field `{field}` here", row.structure);
            vec![full]
        }
    };
    Role::Field(values)
}

/// Sets all bits of a field; whether there is one of this name.
fn fill(notification: &mut Notification, field: &str) -> bool {
    const BYTES: [u8; 16] = [0xff; 16];
    let header = header_mut(notification);
    match (field, header) {
        ("source", Some(header)) => header.source = EndpointId(u16::MAX),
        ("hash", Some(header)) => header.hash = u32::MAX,
        ("len_orig", Some(header)) => header.len_orig = u32::MAX,
        ("len_cap", Some(header)) => header.len_cap = u16::MAX,
        ("ext_version", Some(header)) => header.ext_version = u8::MAX,
        _ => match (field, notification) {
            ("subtype", Notification::Drop(drop)) => drop.reason = DropReason(u8::MAX),
            ("src_label", Notification::Drop(drop)) => drop.src_label = Identity(u32::MAX),
            ("dst_label", Notification::Drop(drop)) => drop.dst_label = Identity(u32::MAX),
            ("dst_id", Notification::Drop(drop)) => drop.dst_id = u32::MAX,
            ("line", Notification::Drop(drop)) => drop.line = u16::MAX,
            ("file", Notification::Drop(drop)) => drop.file = u8::MAX,
            ("ext_error", Notification::Drop(drop)) => drop.ext_error = -1,
            ("ifindex", Notification::Drop(drop)) => drop.ifindex = u32::MAX,
            ("ipv6", Notification::Drop(drop)) => drop.flags = Some(NotifyFlags(1)),
            ("l3_dev", Notification::Drop(drop)) => drop.flags = Some(NotifyFlags(2)),
            ("flags", Notification::Drop(drop)) => drop.flags = Some(NotifyFlags(u8::MAX)),
            ("ip_trace_id", Notification::Drop(drop)) => drop.ip_trace_id = Some(u64::MAX),

            ("subtype", Notification::Trace(trace)) => trace.point = ObservationPoint(u8::MAX),
            ("src_label", Notification::Trace(trace)) => trace.src_label = Identity(u32::MAX),
            ("dst_label", Notification::Trace(trace)) => trace.dst_label = Identity(u32::MAX),
            ("dst_id", Notification::Trace(trace)) => trace.dst_id = u16::MAX,
            ("reason", Notification::Trace(trace)) => trace.reason = TraceReason(u8::MAX),
            ("ipv6", Notification::Trace(trace)) => trace.flags = NotifyFlags(1),
            ("l3_dev", Notification::Trace(trace)) => trace.flags = NotifyFlags(2),
            ("flags", Notification::Trace(trace)) => trace.flags = NotifyFlags(u8::MAX),
            ("ifindex", Notification::Trace(trace)) => trace.ifindex = u32::MAX,
            // A union of an IPv6 address and an IPv4 address with what it leaves over.
            ("orig_ip4", Notification::Trace(trace)) => trace.orig_ip[..4].copy_from_slice(&BYTES[..4]),
            ("orig_pad1", Notification::Trace(trace)) => trace.orig_ip[4..8].copy_from_slice(&BYTES[..4]),
            ("orig_pad2", Notification::Trace(trace)) => trace.orig_ip[8..12].copy_from_slice(&BYTES[..4]),
            ("orig_pad3", Notification::Trace(trace)) => trace.orig_ip[12..].copy_from_slice(&BYTES[..4]),
            ("orig_ip6", Notification::Trace(trace)) => trace.orig_ip = BYTES,
            ("ip_trace_id", Notification::Trace(trace)) => trace.ip_trace_id = Some(u64::MAX),

            ("remote_label", Notification::PolicyVerdict(verdict)) => {
                verdict.remote_label = Identity(u32::MAX);
            }
            ("verdict", Notification::PolicyVerdict(verdict)) => verdict.verdict = -1,
            ("dst_port", Notification::PolicyVerdict(verdict)) => verdict.dst_port = u16::MAX,
            ("proto", Notification::PolicyVerdict(verdict)) => verdict.proto = u8::MAX,
            ("ipv6", Notification::PolicyVerdict(verdict)) => verdict.ipv6 = true,
            ("audited", Notification::PolicyVerdict(verdict)) => verdict.audited = true,
            ("l3", Notification::PolicyVerdict(verdict)) => verdict.l3_device = true,
            ("auth_type", Notification::PolicyVerdict(verdict)) => verdict.auth_type = u8::MAX,
            ("cookie", Notification::PolicyVerdict(verdict)) => verdict.cookie = Some(u32::MAX),

            ("subtype", Notification::DebugMessage(message)) => message.subtype = u8::MAX,
            ("source", Notification::DebugMessage(message)) => message.source = EndpointId(u16::MAX),
            ("hash", Notification::DebugMessage(message)) => message.hash = u32::MAX,
            ("arg1", Notification::DebugMessage(message)) => message.args[0] = u32::MAX,
            ("arg2", Notification::DebugMessage(message)) => message.args[1] = u32::MAX,
            ("arg3", Notification::DebugMessage(message)) => message.args[2] = u32::MAX,

            ("subtype", Notification::DebugCapture(capture)) => capture.subtype = u8::MAX,
            ("arg1", Notification::DebugCapture(capture)) => capture.args[0] = u32::MAX,
            ("arg2", Notification::DebugCapture(capture)) => capture.args[1] = u32::MAX,

            ("xlate_point", Notification::SocketTrace(trace)) => trace.xlate_point = XlatePoint(u8::MAX),
            ("l4_proto", Notification::SocketTrace(trace)) => trace.l4_proto = u8::MAX,
            ("ipv6", Notification::SocketTrace(trace)) => trace.ipv6 = true,
            ("dst_port", Notification::SocketTrace(trace)) => trace.dst_port = u16::MAX,
            ("dst_ip", Notification::SocketTrace(trace)) => trace.dst_ip = BYTES,
            ("sock_cookie", Notification::SocketTrace(trace)) => trace.sock_cookie = u64::MAX,
            ("cgroup_id", Notification::SocketTrace(trace)) => trace.cgroup_id = u64::MAX,
            _ => return false,
        },
    }
    true
}

/// A structure's bytes in which exactly the bits of a row are set.
fn mask(row: &Offset) -> Vec<u8> {
    let mut mask = vec![0; row.size];
    let field = &mut mask[row.offset..row.offset + row.field_size];
    match row.bits {
        None => field.fill(0xff),
        Some((start, width)) => {
            let bits = ((1_u64 << width) - 1) << start;
            field.copy_from_slice(&bits.to_le_bytes()[..row.field_size]);
        }
    }
    mask
}

fn combine(a: &[u8], b: &[u8], with: impl Fn(u8, u8) -> u8) -> Vec<u8> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| with(*a, *b)).collect()
}

/// What a probe in the kernel would make of a notification.
fn read(raw: &[u8]) -> Option<Notification> {
    Sample::from_hook(raw, raw.len(), &[]).ok().map(|sample| sample.notification)
}

fn rows() -> impl Iterator<Item = Offset> {
    let ours: BTreeSet<_> = LAYOUTS.iter().map(|(structure, _)| *structure).collect();
    fixtures::offsets().into_iter().filter(move |row| ours.contains(row.structure))
}

#[test]
fn every_field_lies_where_the_table_says() {
    let (mut fields, mut discriminators, mut padding) = (0, 0, 0);
    for row in rows() {
        let base = build(row.structure, row.size, || 0);
        let zeros = base.encode();
        let (mask, at) = (mask(&row), format!("`{}.{}` of {}", row.structure, row.field, row.versions));
        assert_eq!(zeros.len(), row.size, "{at}");
        match role(&base, &row) {
            Role::Field(values) => {
                fields += 1;
                let mut set = vec![0; row.size];
                for value in values {
                    let raw = value.encode();
                    assert_eq!(read(&raw), Some(value), "{at}");
                    set = combine(&set, &combine(&raw, &zeros, |a, b| a ^ b), |a, b| a | b);
                }
                assert_eq!(set, mask, "{at}");
            }
            Role::Discriminator => {
                discriminators += 1;
                for bit in 0..row.size * 8 {
                    let mut raw = zeros.clone();
                    raw[bit / 8] ^= 1 << (bit % 8) & mask[bit / 8];
                    assert_eq!(read(&raw) == Some(base), raw == zeros, "{at}, bit {bit}");
                }
            }
            Role::Padding => {
                padding += 1;
                assert_eq!(combine(&zeros, &mask, |a, b| a & b), vec![0; row.size], "{at}");
            }
        }
    }
    assert_eq!((fields, discriminators, padding), (253, 37, 29), "rows checked");
}

#[test]
fn the_table_has_the_sizes_that_are_known_and_leaves_no_byte_out() {
    let sizes: BTreeSet<_> = rows().map(|row| (row.structure, row.size)).collect();
    assert_eq!(sizes, LAYOUTS.into_iter().collect());
    let columns: BTreeSet<_> = rows().map(|row| (row.structure, row.versions)).collect();
    for column in columns {
        let of_column: Vec<_> = rows().filter(|row| (row.structure, row.versions) == column).collect();
        let covered = of_column.iter().map(mask).reduce(|a, b| combine(&a, &b, |a, b| a | b)).unwrap();
        assert!(covered.iter().all(|byte| *byte == 0xff), "{column:?}: {covered:x?}");
    }
}

#[test]
fn any_value_is_read_back() {
    let mut random = Random::new(7);
    for (structure, size) in LAYOUTS {
        for _ in 0..5_000 {
            let value = build(structure, size, || random.number());
            let raw = value.encode();
            assert_eq!(raw.len(), size, "{structure}");
            assert_eq!(read(&raw), Some(value), "{structure} {size}");
        }
    }
}

/// The other way round: what is decoded from any bytes with zero padding is written again as these bytes.
#[test]
fn any_bytes_are_written_back() {
    let mut random = Random::new(8);
    for (structure, size) in LAYOUTS {
        let mut base = build(structure, size, || 0);
        let constants = base.encode();
        // Of several releases with this size the last: it has the fewest bytes without a meaning.
        let newest = rows().filter(|row| (row.structure, row.size) == (structure, size)).last().unwrap();
        let padding: Vec<_> = rows()
            .filter(|row| (row.structure, row.versions) == (structure, newest.versions))
            .filter(|row| matches!(role(&base, row), Role::Padding))
            .map(|row| mask(&row))
            .collect();
        let mut decoded = 0;
        for _ in 0..5_000 {
            let mut raw = random.bytes(size);
            raw[0] = constants[0];
            if header_mut(&mut base).is_some() {
                raw[14..16].copy_from_slice(&constants[14..16]);
            }
            for mask in &padding {
                raw = combine(&raw, mask, |raw, padding| raw & !padding);
            }
            if let Some(value) = read(&raw) {
                decoded += 1;
                assert_eq!(value.encode(), raw, "{structure} {size}");
            }
        }
        assert!(decoded > 1_000, "{structure} {size}: only {decoded} were read");
    }
}

#[test]
fn what_flags_and_reasons_say() {
    let flags = |bits| {
        let flags = NotifyFlags(bits);
        (flags.is_ipv6(), flags.is_l3_device(), flags.is_vxlan(), flags.is_geneve())
    };
    assert_eq!(flags(0), (false, false, false, false));
    assert_eq!(flags(1), (true, false, false, false));
    assert_eq!(flags(2), (false, true, false, false));
    assert_eq!(flags(4), (false, false, true, false));
    assert_eq!(flags(8), (false, false, false, true));
    assert_eq!(TraceReason(0).to_string(), "new");
    assert_eq!(TraceReason(0x81).to_string(), "established, encrypted");
    assert_eq!(TraceReason(8).to_string(), "encrypt-overlay");
    assert_eq!(TraceReason(0x89).to_string(), "reason 9, encrypted");
    assert_eq!(ObservationPoint(12).to_string(), "from-crypto");
    assert_eq!(ObservationPoint(14).to_string(), "observation point 14");
    assert_eq!(XlatePoint(4).to_string(), "post-xlate-rev");
    assert_eq!(XlatePoint(5).to_string(), "translation point 5");
}

/// A file's number means something only with the release, of which the notification's version tells some.
#[test]
fn the_file_of_a_drop() {
    let file = |size, number, agent: Option<u8>| {
        let Notification::Drop(mut drop) = build("drop_notify", size, || 0) else { unreachable!() };
        drop.file = number;
        drop.source_file(agent.map(Release))
    };
    assert_eq!(file(36, 2, None), Some("bpf_lxc.c"), "the same in all of 1.13 to 1.17");
    assert_eq!(file(36, 105, None), Some("nodeport.h"));
    assert_eq!(file(48, 105, None), Some("lb.h"));
    assert_eq!(file(36, 107, None), None);
    assert_eq!(file(36, 107, Some(15)), Some("encrypt.h"));
    assert_eq!(file(36, 107, Some(17)), Some("mcast.h"));
    assert_eq!(file(40, 110, None), None, "1.17 and 1.18 disagree");
    assert_eq!(file(40, 110, Some(17)), Some("l3.h"));
    assert_eq!(file(40, 110, Some(18)), Some("local_delivery.h"));
    // A program of the release before, still there after an upgrade: the agent's release is not its.
    assert_eq!(file(40, 110, Some(19)), None);
    assert_eq!(file(40, 105, Some(19)), Some("nodeport.h"));
}
