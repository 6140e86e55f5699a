//! The translation against libpcap's own interpreter, a naive one of our own, and the kernel.
use fixtures::Random;
use probe_common::{CAPTURE_MAX, Capture};

use super::*;

/// Classic BPF as its manual has it, with numbers for codes: `packet` is all that was captured.
fn classic(program: &[Classic], packet: &[u8], packet_len: u32) -> u32 {
    let load = |at: u64, size: usize| -> Option<u32> {
        let bytes = packet.get(usize::try_from(at).ok()?..)?.get(..size)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    let (mut a, mut x, mut memory, mut line) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let Classic { code, jt, jf, k } = program[line];
        line += 1;
        let right = if code & 0x08 == 0 { k } else { x };
        let skip = |holds: bool| usize::from(if holds { jt } else { jf });
        let loaded = match code {
            0x20 => load(k.into(), 4),
            0x28 => load(k.into(), 2),
            0x30 | 0xb1 => load(k.into(), 1),
            0x40 => load(u64::from(x) + u64::from(k), 4),
            0x48 => load(u64::from(x) + u64::from(k), 2),
            0x50 => load(u64::from(x) + u64::from(k), 1),
            _ => Some(0),
        };
        let Some(loaded) = loaded else { return 0 };
        match code {
            0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 => a = loaded,
            0xb1 => x = (loaded & 0xf) * 4,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = memory[k as usize],
            0x61 => x = memory[k as usize],
            0x80 => a = packet_len,
            0x81 => x = packet_len,
            0x02 => memory[k as usize] = a,
            0x03 => memory[k as usize] = x,
            0x04 | 0x0c => a = a.wrapping_add(right),
            0x14 | 0x1c => a = a.wrapping_sub(right),
            0x24 | 0x2c => a = a.wrapping_mul(right),
            0x34 | 0x3c | 0x94 | 0x9c if right == 0 => return 0,
            0x34 | 0x3c => a /= right,
            0x94 | 0x9c => a %= right,
            0x44 | 0x4c => a |= right,
            0x54 | 0x5c => a &= right,
            0x64 | 0x6c => a = a.checked_shl(right).unwrap_or(0),
            0x74 | 0x7c => a = a.checked_shr(right).unwrap_or(0),
            0x84 => a = a.wrapping_neg(),
            0xa4 | 0xac => a ^= right,
            0x05 => line += k as usize,
            0x15 | 0x1d => line += skip(a == right),
            0x25 | 0x2d => line += skip(a > right),
            0x35 | 0x3d => line += skip(a >= right),
            0x45 | 0x4d => line += skip(a & right != 0),
            0x06 => return k,
            0x16 => return a,
            0x07 => x = a,
            0x87 => a = x,
            _ => panic!("code {code:#x}"),
        }
    }
}

/// As much of eBPF as the translation uses, on `capture` at address 0 (whatever the layout of the host).
fn extended(code: &[u8], capture: &mut [u8; size_of::<Capture>()]) -> u64 {
    let (instructions, rest) = code.as_chunks::<8>();
    assert!(rest.is_empty());
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    loop {
        let [code, both, off_low, off_high, imm @ ..] = instructions[at];
        let (dst, src) = (usize::from(both & 0xf), usize::from(both >> 4));
        let off = i16::from_le_bytes([off_low, off_high]);
        let imm = i32::from_le_bytes(imm);
        let right = if code & 0x08 == 0 { i64::from(imm).cast_unsigned() } else { registers[src] };
        let place = |base: u64| usize::try_from(base).unwrap() + usize::try_from(off).unwrap();
        let size = [4, 2, 1, 8][usize::from(code >> 3 & 3)];
        at += 1;
        match code & 7 {
            1 => {
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(&capture[place(registers[src])..][..size]);
                registers[dst] = u64::from_le_bytes(bytes);
            }
            2 => capture[place(registers[dst])..][..size].copy_from_slice(&imm.to_le_bytes()[..size]),
            3 => {
                let bytes = registers[src].to_le_bytes();
                capture[place(registers[dst])..][..size].copy_from_slice(&bytes[..size]);
            }
            4 => {
                let (left, right) = (registers[dst] as u32, right as u32);
                registers[dst] = u64::from(match code & 0xf0 {
                    0x00 => left.wrapping_add(right),
                    0x10 => left.wrapping_sub(right),
                    0x20 => left.wrapping_mul(right),
                    0x30 => left.checked_div(right).unwrap_or(0),
                    0x40 => left | right,
                    0x50 => left & right,
                    0x60 => left << (right & 31),
                    0x70 => left >> (right & 31),
                    0x80 => left.wrapping_neg(),
                    0x90 => left.checked_rem(right).unwrap_or(left),
                    0xa0 => left ^ right,
                    0xb0 => right,
                    0xd0 if imm == 16 => (left as u16).swap_bytes().into(),
                    0xd0 if imm == 32 => left.swap_bytes(),
                    _ => panic!("code {code:#x}"),
                });
            }
            7 if code & 0xf0 == 0 => registers[dst] = registers[dst].wrapping_add(right),
            7 if code & 0xf0 == 0xb0 => registers[dst] = right,
            5 if code == 0x95 => return registers[0],
            5 | 6 => {
                let narrow = |value: u64| if code & 7 == 6 { u64::from(value as u32) } else { value };
                let (left, right) = (narrow(registers[dst]), narrow(right));
                let holds = match code & 0xf0 {
                    0x00 => true,
                    0x10 => left == right,
                    0x20 => left > right,
                    0x30 => left >= right,
                    0x40 => left & right != 0,
                    0x50 => left != right,
                    0xa0 => left < right,
                    0xb0 => left <= right,
                    _ => panic!("code {code:#x}"),
                };
                at += if holds { usize::try_from(off).unwrap() } else { 0 };
            }
            _ => panic!("code {code:#x}"),
        }
    }
}

/// What a translated program makes of a packet, among what an earlier one has left.
fn translated(code: &[u8], packet: &[u8], packet_len: u32) -> bool {
    let mut capture = [0xa5; size_of::<Capture>()];
    capture[64..68].copy_from_slice(&packet_len.to_le_bytes());
    capture[68..72].copy_from_slice(&(packet.len() as u32).to_le_bytes());
    capture[72..72 + packet.len()].copy_from_slice(packet);
    extended(code, &mut capture) != 0
}

const LOADS: [u16; 12] = [0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xb1, 0x00, 0x01, 0x80, 0x81, 0x30];
const MEMORY: [u16; 4] = [0x60, 0x61, 0x02, 0x03];
const SUMS: [u16; 21] = [
    0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84,
    0x94, 0x9c, 0xa4, 0xac,
];
const JUMPS: [u16; 9] = [0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];
const REST: [u16; 4] = [0x07, 0x87, 0x06, 0x16];

/// A program that ends: jumps lead forward and the last instruction returns what has been worked out.
pub(in crate::attach) fn random_program(random: &mut Random) -> Vec<Classic> {
    let len = 2 + random.index(30);
    // libpcap begins with whatever is in its memory.
    let mut program: Vec<Classic> = (0..16).map(|k| Classic { code: 0x02, jt: 0, jf: 0, k }).collect();
    program.extend((0..len).map(|line| random_instruction(random, len - line - 1)));
    program.push(Classic { code: 0x16, jt: 0, jf: 0, k: 0 });
    program
}

/// `after`: how many instructions follow before the last.
fn random_instruction(random: &mut Random, after: usize) -> Classic {
    let groups: [&[u16]; 7] = [&LOADS, &LOADS, &MEMORY, &SUMS, &SUMS, &JUMPS, &REST];
    let group = random.one(&groups);
    let code = random.one(group);
    let mut skip = || random.below(after as u64 + 1) as u8;
    let (jt, jf) = if group == JUMPS && code != 0x05 { (skip(), skip()) } else { (0, 0) };
    let k = match code {
        0x05 => skip().into(),
        _ if group == MEMORY => random.below(16) as u32,
        // Mostly inside the packet, around its end and the capture's, and far beyond.
        0x20..=0x50 | 0xb1 => match random.below(8) {
            0 => random.below(u64::from(u32::MAX)) as u32,
            1 => 250 + random.below(10) as u32,
            _ => random.below(90) as u32,
        },
        _ => match random.below(4) {
            0 => random.below(u64::from(u32::MAX)) as u32,
            1 => random.below(300) as u32,
            _ => random.below(40) as u32,
        },
    };
    // libpcap's compiler makes neither a shift by 32 nor a division by 0.
    let k = match code {
        0x64 | 0x74 => k % 32,
        0x34 | 0x94 => k.max(1),
        _ => k,
    };
    Classic { code, jt, jf, k }
}

pub(in crate::attach) fn random_bytes(random: &mut Random, len: usize) -> Vec<u8> {
    // Small numbers, so that a byte of the packet is now and then a place in it.
    (0..len).map(|_| random.below(if len.is_multiple_of(2) { 64 } else { 256 }) as u8).collect()
}

#[test]
fn a_translated_program_is_the_same_program() {
    let mut random = Random::new(20);
    let mut matched = 0u32;
    for _ in 0..30_000 {
        let program = random_program(&mut random);
        let code = translate::translate(&program).unwrap();
        for _ in 0..4 {
            let len = random.index(CAPTURE_MAX + 1);
            let packet = random_bytes(&mut random, len);
            let packet_len = random.below(70_000) as u32;
            let expected = pcap::run(&program, &packet, packet_len);
            assert_eq!(classic(&program, &packet, packet_len), expected, "{program:x?}\n{packet:x?}");
            let found = translated(&code, &packet, packet_len);
            assert_eq!(found, expected != 0, "{program:x?}\n{packet:x?} of {packet_len}");
            matched += u32::from(found);
        }
    }
    assert!((20_000..100_000).contains(&matched), "{matched} of 120,000 match: too few of one kind");
}

/// An IPv4 packet from 10.0.0.2 to 10.0.0.1.
fn ipv4(proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 1, 0x40, 0, 64, proto, 0, 0];
    packet.extend([10, 0, 0, 2, 10, 0, 0, 1]);
    packet.extend(payload);
    packet
}

#[test]
fn expressions_as_operators_write_them() {
    let tcp = |flags| {
        let mut header = [0; 20];
        header[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        (header[12], header[13]) = (0x50, flags);
        ipv4(6, &header)
    };
    let (syn, ack) = (tcp(2), tcp(16));
    let dns = ipv4(17, &[0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    v6.extend([[0xfd; 16], [0xfe; 16]].concat());
    v6.extend([0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    let packets = [("syn", &syn), ("ack", &ack), ("dns", &dns), ("v6", &v6)];
    let check = |text: &str, expected: &str| {
        let expression = Expression::parse(text).unwrap();
        let matches = |packet: &[u8]| translated(&expression.code, packet, packet.len() as u32);
        let found: Vec<_> =
            packets.iter().filter(|(_, packet)| matches(packet)).map(|(name, _)| *name).collect();
        assert_eq!(found.join(" "), expected, "{text}");
    };
    check("tcp[tcpflags] & tcp-syn != 0", "syn");
    check("tcp", "syn ack");
    check("udp port 53", "dns v6");
    check("ip6", "v6");
    check("not ip6 and src host 10.0.0.2", "syn ack dns");
    check("dst net 10.0.0.0/31 and not tcp port 443", "syn ack dns");
    check("udp[8:4] = 0x01020304", "dns");
    check("greater 40", "syn ack v6");
    check("portrange 50-60", "dns v6");
    check("tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", "");
    check("", "syn ack dns v6");
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = Expression::parse(text).unwrap_err();
    assert_eq!(format!("{error:#}"), expected);
}

#[test]
fn what_does_not_parse_is_pointed_at() {
    let note = "the part before this can begin an expression";
    let syntax = "can't parse filter expression: syntax error";
    refused(
        "tcp and prot 80",
        &format!("syntax error in filter expression\n  tcp and prot 80\n          ^ {note}"),
    );
    refused("host 10.0.0.1 and", &format!("{syntax}\n  host 10.0.0.1 and\n                   ^ {note}"));
    refused(
        "tcp[tcpflags & 2 != 0",
        &format!("{syntax}\n  tcp[tcpflags & 2 != 0\n                   ^ {note}"),
    );
    refused("(tcp port 80", &format!("{syntax}\n  (tcp port 80\n              ^ {note}"));
}

#[test]
fn loops_and_what_no_kernel_runs_are_refused() {
    let line = |code, k| Classic { code, jt: 0, jf: 0, k };
    let error = |program: &[Classic]| format!("{:#}", translate::translate(program).unwrap_err());
    assert_eq!(error(&[]), "it is empty");
    assert_eq!(error(&[line(0x00, 0)]), "instruction 0 leads out of it, or back");
    assert_eq!(error(&[line(0x05, u32::MAX), line(0x06, 0)]), "instruction 0 leads out of it, or back");
    assert_eq!(
        error(&[line(0x02, 16), line(0x06, 0)]),
        "instruction 0 uses word 16 of the scratch memory, which has 16"
    );
    assert_eq!(error(&[line(0x34, 0), line(0x06, 0)]), "instruction 0 has the code 0x0034, which is unknown");
    assert_eq!(error(&[line(0xf0, 0), line(0x06, 0)]), "instruction 0 has the code 0x00f0, which is unknown");
    // What is never reached is left out, and may be anything.
    assert!(translate::translate(&[line(0x06, 1), line(0xf0, 0)]).is_ok());
}

#[test]
fn an_object_without_the_stand_in_is_refused() {
    let expression = Expression::parse("tcp").unwrap();
    let error = inject(b"not an object", &expression).unwrap_err();
    assert!(format!("{error:#}").starts_with("failed to put the filter expression into our eBPF object: "));
}
