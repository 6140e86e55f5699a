//! The first bytes of a connection.

use probe_model::proxy_protocol::{FirstBytes, Proxy, SIGNATURE};

/// Bytes that a client sends first, whole and cut at each place: what fewer bytes have settled, more do not take back.
pub fn proxy(data: &[u8]) {
    let whole = FirstBytes::of(data);
    if let Some(FirstBytes::ProxyV2(Proxy::Whole(header))) = whole {
        assert!(header.len <= data.len());
    }
    for cut in 0..data.len().min(64) {
        if let Some(settled @ FirstBytes::ProxyV2(Proxy::Whole(_) | Proxy::Malformed(_))) =
            FirstBytes::of(&data[..cut])
        {
            assert_eq!(Some(settled), whole, "cut at {cut}");
        }
    }
}

/// Headers of every family, Azure's among them, and what else a connection may begin with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let with = |fixed: [u8; 4], body: &[u8]| [&SIGNATURE[..], &fixed, body].concat();
    let inet = [10, 221, 1, 4, 10, 224, 0, 7, 0xc7, 0x38, 0, 80];
    let link_id = [0xee, 0, 5, 1, 0xc1, 0x45, 0, 0x21];
    let checksum = [3, 0, 4, 0, 0, 0, 0];
    vec![
        with([0x21, 0x11, 0, 20], &[&inet[..], &link_id].concat()),
        with([0x21, 0x11, 0, 27], &[&inet[..], &checksum, &link_id].concat()),
        with([0x21, 0x21, 0, 36], &[7; 36]),
        with([0x21, 0x31, 0, 216], &[7; 216]),
        with([0x20, 0, 0, 0], b"GET / HTTP/1.1\r\n"),
        b"PROXY TCP4 10.221.1.4 10.224.0.7 51000 80\r\n".to_vec(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ]
}
