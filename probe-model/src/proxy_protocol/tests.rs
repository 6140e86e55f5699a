//! The protocol by its specification, Azure's test vector, and bytes that are neither.

use fixtures::Random;

use super::*;

/// 10.221.1.4:51000 to 10.224.0.7:80, linkID 553665985: the last four bytes are go-proxyproto's test vector.
const AZURE: [u8; 36] = [
    0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // signature
    0x21, 0x11, 0x00, 0x14, // version 2 PROXY, IPv4 STREAM, 20 bytes
    0x0a, 0xdd, 0x01, 0x04, 0x0a, 0xe0, 0x00, 0x07, 0xc7, 0x38, 0x00, 0x50, // addresses and ports
    0xee, 0x00, 0x05, 0x01, 0xc1, 0x45, 0x00, 0x21, // TLV
];

fn azure() -> Header {
    Header {
        command: Command::Proxy,
        addresses: Addresses::Inet {
            source: "10.221.1.4:51000".parse().unwrap(),
            destination: "10.224.0.7:80".parse().unwrap(),
        },
        link_id: Some(553_665_985),
        tlvs: 1,
        len: 36,
    }
}

/// A header with this body behind the fixed part.
fn bytes(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let fixed = [version_command, family, (body.len() >> 8) as u8, body.len() as u8];
    [&SIGNATURE[..], &fixed, body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, (value.len() >> 8) as u8, value.len() as u8], value].concat()
}

#[track_caller]
fn check(bytes: &[u8], expected: Proxy) {
    assert_eq!(FirstBytes::of(bytes), Some(FirstBytes::ProxyV2(expected)), "{bytes:02x?}");
}

const V4: [u8; 12] = [10, 221, 1, 4, 10, 224, 0, 7, 0xc7, 0x38, 0, 80];

#[test]
fn azure_s_header() {
    check(&AZURE, Proxy::Whole(azure()));
    let with_request = [&AZURE[..], b"GET / HTTP/1.1\r\n"].concat();
    check(&with_request, Proxy::Whole(azure()));
    assert_eq!(azure().source(), Some("10.221.1.4:51000".parse().unwrap()));
}

#[test]
fn a_header_that_comes_in_pieces() {
    for cut in 1..AZURE.len() {
        let expected = match cut {
            0..16 => Proxy::Cut { wanted: 16, header: None },
            16..28 => Proxy::Cut { wanted: 36, header: None },
            // The TLV has not all come: there is no LinkID yet.
            _ => Proxy::Cut { wanted: 36, header: Some(Header { link_id: None, tlvs: 0, ..azure() }) },
        };
        check(&AZURE[..cut], expected);
    }
    let body = [&V4[..], &tlv(0xee, &[1, 1, 0, 0, 0]), &tlv(4, &[0; 300])].concat();
    let Some(FirstBytes::ProxyV2(Proxy::Cut { wanted, header })) =
        FirstBytes::of(&bytes(0x21, 0x11, &body)[..256])
    else {
        panic!()
    };
    assert_eq!((wanted, header.unwrap().link_id), (16 + 12 + 8 + 303, Some(1)), "longer than the capture");
}

#[test]
fn tlvs_in_any_order_and_unknown_ones() {
    let link = tlv(0xee, &[1, 1, 0, 0, 0]);
    let other_subtype = tlv(0xee, &[2, 9, 9]);
    let unknown = tlv(0x99, b"anything");
    for tlvs in [
        [&link[..], &unknown, &other_subtype].concat(),
        [&unknown[..], &link, &other_subtype].concat(),
        [&other_subtype[..], &tlv(0x04, &[]), &link].concat(),
    ] {
        let whole = bytes(0x21, 0x11, &[&V4[..], &tlvs].concat());
        let len = whole.len();
        check(&whole, Proxy::Whole(Header { link_id: Some(1), tlvs: 3, len, ..azure() }));
    }
}

#[test]
fn every_family() {
    let source = "[fd00::4]:51000".parse().unwrap();
    let destination = "[fd00::7]:80".parse().unwrap();
    let mut v6 = [0; 36];
    (v6[0], v6[15], v6[16], v6[31]) = (0xfd, 4, 0xfd, 7);
    v6[32..].copy_from_slice(&[0xc7, 0x38, 0, 80]);
    for (family, body, addresses) in [
        (0x21, &v6[..], Addresses::Inet { source, destination }),
        (0x31, &[7; 216], Addresses::Unix),
        (0x00, &[], Addresses::Unspecified),
        (0x12, &V4, azure().addresses),
    ] {
        let whole = bytes(0x21, family, body);
        let len = whole.len();
        check(&whole, Proxy::Whole(Header { addresses, link_id: None, tlvs: 0, len, ..azure() }));
        if !body.is_empty() {
            let (len, addresses) = (body.len() as u16 - 1, body.len() as u16);
            check(&bytes(0x21, family, &body[1..]), Proxy::Malformed(Malformed::TooShort { len, addresses }));
        }
    }
}

/// As a health probe sends it: what its family and addresses are does not count.
#[test]
fn local_speaks_for_itself() {
    for (family, body) in [(0x00, &[][..]), (0x11, &V4), (0x11, &V4[..3]), (0x77, b"anything")] {
        let whole = bytes(0x20, family, body);
        let len = whole.len();
        let header = Header {
            command: Command::Local,
            addresses: Addresses::Unspecified,
            link_id: None,
            tlvs: 0,
            len,
        };
        check(&whole, Proxy::Whole(header));
        assert_eq!(header.source(), None);
    }
    let with_link = bytes(0x20, 0x11, &[&V4[..], &tlv(0xee, &[1, 1, 0, 0, 0])].concat());
    let Some(FirstBytes::ProxyV2(Proxy::Whole(header))) = FirstBytes::of(&with_link) else { panic!() };
    assert_eq!((header.link_id, header.tlvs), (Some(1), 1));
}

#[test]
fn what_breaks_the_protocol() {
    let with = |tlvs: &[u8]| bytes(0x21, 0x11, &[&V4[..], tlvs].concat());
    for (bytes, malformed, text) in [
        (bytes(0x11, 0x11, &V4), Malformed::Version(1), "version 1, expected 2"),
        (bytes(0x22, 0x11, &V4), Malformed::Command(2), "command 2, expected LOCAL (0) or PROXY (1)"),
        (
            bytes(0x21, 0x41, &V4),
            Malformed::Family(0x41),
            "address family and protocol 0x41, which do not exist",
        ),
        (
            bytes(0x21, 0x13, &V4),
            Malformed::Family(0x13),
            "address family and protocol 0x13, which do not exist",
        ),
        (
            bytes(0x21, 0x21, &V4),
            Malformed::TooShort { len: 12, addresses: 36 },
            "12 bytes after the fixed part, expected at least 36 of addresses",
        ),
        (
            with(&[0xee, 0, 6, 1, 1, 0, 0, 0]),
            Malformed::Tlv { kind: 0xee },
            "TLV 0xee reaches beyond the header's end",
        ),
        (with(&[0x04, 0]), Malformed::Tlv { kind: 4 }, "TLV 0x04 reaches beyond the header's end"),
        (
            with(&tlv(0xee, &[1, 1, 0, 0])),
            Malformed::LinkId { len: 4 },
            "Azure's LinkID (TLV 0xee) is 4 bytes, expected 5",
        ),
        (
            with(&tlv(0xee, &[1, 1, 0, 0, 0, 0])),
            Malformed::LinkId { len: 6 },
            "Azure's LinkID (TLV 0xee) is 6 bytes, expected 5",
        ),
        (with(&tlv(0x03, &[0; 4])), Malformed::Checksum, "its CRC32c is wrong"),
    ] {
        check(&bytes, Proxy::Malformed(malformed));
        assert_eq!(malformed.to_string(), text);
    }
    // What is wrong at once is not waited for.
    check(&[&SIGNATURE[..], &[0x31]].concat(), Proxy::Malformed(Malformed::Version(3)));
    check(&bytes(0x21, 0x11, &[&V4[..], &[0xee, 0, 200, 1]].concat())[..30], {
        Proxy::Cut { wanted: 32, header: Some(Header { link_id: None, tlvs: 0, len: 32, ..azure() }) }
    });
}

#[test]
fn a_checksum() {
    // RFC 3720, B.4: 32 bytes of zeros.
    assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
    let mut whole = bytes(0x21, 0x11, &[&V4[..], &tlv(0x04, b"x"), &tlv(0x03, &[0; 4])].concat());
    let crc = crc32c(whole.iter().copied());
    let at = whole.len() - 4;
    whole[at..].copy_from_slice(&crc.to_be_bytes());
    let len = whole.len();
    check(&whole, Proxy::Whole(Header { link_id: None, tlvs: 2, len, ..azure() }));
    whole[31] ^= 1;
    check(&whole, Proxy::Malformed(Malformed::Checksum));
}

#[test]
fn other_first_bytes() {
    for (bytes, expected) in [
        (&b"PROXY TCP4 10.221.1.4 10.224.0.7 51000 80\r\n"[..], FirstBytes::ProxyV1),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", FirstBytes::Tls),
        (b"\x16\x03\x01\x02\x00\x02", FirstBytes::Other),
        (b"GET / HTTP/1.1\r\n", FirstBytes::Http),
        (b"GETTY", FirstBytes::Other),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes::Http2),
        (b"HTTP/1.1 400 Bad Request\r\n", FirstBytes::HttpStatus(400)),
        (b"HTTP/1.0 200", FirstBytes::HttpStatus(200)),
        (b"HTTP/1.1 4", FirstBytes::Other),
        (b"HTTP/1.1 +00", FirstBytes::Other),
        (b"SSH-2.0-OpenSSH_9.6\r\n", FirstBytes::Other),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", FirstBytes::Other),
        (b"\0", FirstBytes::Other),
    ] {
        assert_eq!(FirstBytes::of(bytes), Some(expected), "{}", bytes.escape_ascii());
    }
    assert_eq!(FirstBytes::of(&[]), None);
}

/// Whatever is cut or bent: no panic, and more bytes never take back what fewer had settled.
#[test]
fn bent_headers_and_every_cut_of_them() {
    let with_tlvs = bytes(
        0x21,
        0x11,
        &[&V4[..], &tlv(0x02, b"pls-app"), &tlv(0xee, &[1, 1, 2, 3, 4]), &tlv(0x20, &[7; 9])].concat(),
    );
    let mut random = Random::new(5);
    for seed in [&AZURE[..], &with_tlvs, &bytes(0x20, 0, &[]), &bytes(0x21, 0x21, &[9; 60])] {
        for _ in 0..2_000 {
            let mut bent = seed.to_vec();
            for _ in 0..random.below(3) {
                let at = random.index(bent.len());
                bent[at] = random.number() as u8;
            }
            let whole = FirstBytes::of(&bent);
            for cut in 0..bent.len() {
                match FirstBytes::of(&bent[..cut]) {
                    Some(FirstBytes::ProxyV2(Proxy::Cut { header, .. })) => {
                        let later = whole.as_ref().and_then(|whole| whole.header());
                        if let (Some(before), Some(after)) = (header, later) {
                            assert_eq!(before.addresses, after.addresses);
                            assert!(before.tlvs <= after.tlvs);
                        }
                    }
                    Some(settled @ FirstBytes::ProxyV2(_)) => assert_eq!(Some(settled), whole, "{bent:02x?}"),
                    _ => {}
                }
            }
        }
    }
}
