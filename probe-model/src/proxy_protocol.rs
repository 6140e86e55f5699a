//! The PROXY protocol, and what else a connection's first bytes may be.
//!
//! Azure's Private Link Service puts a header of version 2 in front of every connection, the load balancer in front of
//! its health probes. Source: "The PROXY protocol", `HAProxy`'s `doc/proxy-protocol.txt`, sections 2.1 and 2.2; Azure's
//! TLV from the Private Link documentation, "Getting connection information using TCP Proxy v2".

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Buf as _;

/// What a header of version 2 begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, version, family and length.
const FIXED_LEN: usize = 16;
/// `PP2_TYPE_CRC32C`.
const TLV_CRC32C: u8 = 0x03;
/// `PP2_TYPE_AZURE`.
const TLV_AZURE: u8 = 0xee;
/// `PP2_SUBTYPE_AZURE_PRIVATEENDPOINT_LINKID`.
const AZURE_LINK_ID: u8 = 0x01;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// The PROXY protocol's second version.
    ProxyV2(Proxy),
    /// The PROXY protocol's first version: a line of text.
    ProxyV1,
    /// A TLS `ClientHello`.
    Tls,
    /// HTTP/1's request line.
    Http,
    /// HTTP/2's connection preface.
    Http2,
    /// An HTTP/1 answer, with its status.
    HttpStatus(u16),
    /// Anything else.
    Other,
}

/// What there is of a header of version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// The whole of it.
    Whole(Header),
    /// Its beginning; the rest did not come, or was not captured.
    Cut {
        /// Bytes that the header has, as far as its beginning tells: at least so many are wanted.
        wanted: usize,
        /// What the beginning says, if the addresses are in it.
        header: Option<Header>,
    },
    /// It has the signature and breaks the protocol.
    Malformed(Malformed),
}

/// A header of version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it speaks for somebody else.
    pub command: Command,
    /// For whom.
    pub addresses: Addresses,
    /// Azure's identifier of the private endpoint connection (TLV 0xEE, subtype 1), if there is one.
    pub link_id: Option<u32>,
    /// How many TLVs there are.
    pub tlvs: u16,
    /// Its length in bytes: what the application wants to see begins behind it.
    pub len: usize,
}

/// A header's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The sender speaks for itself, as a health probe does: the connection's own addresses count.
    Local,
    /// The sender passes on a connection of the addresses in the header.
    Proxy,
}

/// A header's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4 or IPv6: who connected, and to whom.
    Inet {
        /// Who connected. Behind Private Link the consumer, in an address space of its own.
        source: SocketAddr,
        /// To whom.
        destination: SocketAddr,
    },
    /// Paths of UNIX sockets.
    Unix,
    /// None, or none that count.
    Unspecified,
}

/// How a header breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A version other than 2.
    Version(u8),
    /// A command that does not exist.
    Command(u8),
    /// A family or transport that does not exist.
    Family(u8),
    /// Shorter than the addresses of its family.
    TooShort {
        /// Length that the header gives.
        len: u16,
        /// Length of the addresses.
        addresses: u16,
    },
    /// A TLV reaches beyond the header's end.
    Tlv {
        /// Its type.
        kind: u8,
    },
    /// Azure's `LinkID` has another length than 5.
    LinkId {
        /// The length that was found.
        len: u16,
    },
    /// The checksum (`CRC32c`) is not the header's.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}, expected 2"),
            Self::Command(command) => write!(f, "command {command}, expected LOCAL (0) or PROXY (1)"),
            Self::Family(family) => {
                write!(f, "address family and protocol {family:#04x}, which do not exist")
            }
            Self::TooShort { len, addresses } => {
                write!(f, "{len} bytes after the fixed part, expected at least {addresses} of addresses")
            }
            Self::Tlv { kind } => write!(f, "TLV {kind:#04x} reaches beyond the header's end"),
            Self::LinkId { len } => write!(f, "Azure's LinkID (TLV 0xee) is {len} bytes, expected 5"),
            Self::Checksum => f.write_str("its CRC32c is wrong"),
        }
    }
}

impl Header {
    /// The consumer that the header names.
    pub fn source(&self) -> Option<SocketAddr> {
        match self.addresses {
            Addresses::Inet { source, .. } if self.command == Command::Proxy => Some(source),
            _ => None,
        }
    }
}

impl FirstBytes {
    /// What these are; `None` without a byte.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let common = bytes.len().min(SIGNATURE.len());
        if bytes[..common] == SIGNATURE[..common] {
            return Some(Self::ProxyV2(Proxy::of(bytes)));
        }
        Some(if bytes.starts_with(b"PROXY ") {
            Self::ProxyV1
        } else if bytes.starts_with(b"PRI * HTTP/2.0") {
            Self::Http2
        } else if is_client_hello(bytes) {
            Self::Tls
        } else if is_request_line(bytes) {
            Self::Http
        } else {
            status(bytes).map_or(Self::Other, Self::HttpStatus)
        })
    }

    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::ProxyV2(_) => "proxy-v2",
            Self::ProxyV1 => "proxy-v1",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::HttpStatus(_) => "http-status",
            Self::Other => "other",
        }
    }

    /// The header of version 2, as far as it is there and keeps to the protocol.
    pub fn header(&self) -> Option<&Header> {
        match self {
            Self::ProxyV2(Proxy::Whole(header) | Proxy::Cut { header: Some(header), .. }) => Some(header),
            _ => None,
        }
    }

    /// Whether it is a header of either version.
    pub fn is_proxy(self) -> bool {
        matches!(self, Self::ProxyV1 | Self::ProxyV2(_))
    }
}

/// A handshake record of TLS (SSL 3.0–TLS 1.3 write versions 3.0–3.4) with a `ClientHello` in it.
fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 0x03, 0..=4, _, _, 0x01, ..])
}

fn is_request_line(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// The status of an HTTP/1 answer.
fn status(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    let digits: &[u8; 3] = rest.get(1..)?.strip_prefix(b" ")?.first_chunk()?;
    digits.iter().all(u8::is_ascii_digit).then(|| str::from_utf8(digits).ok()?.parse().ok())?
}

impl Proxy {
    /// Of bytes that begin as the signature does.
    fn of(bytes: &[u8]) -> Self {
        let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
            // What is there already may be wrong.
            return match bytes.get(SIGNATURE.len()).and_then(|byte| command(*byte).err()) {
                Some(malformed) => Self::Malformed(malformed),
                None => Self::Cut { wanted: FIXED_LEN, header: None },
            };
        };
        let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let wanted = FIXED_LEN + len;
        let body = &bytes[FIXED_LEN..bytes.len().min(wanted)];
        match header(fixed, body, len) {
            Err(malformed) => Self::Malformed(malformed),
            Ok(header) if bytes.len() < wanted => Self::Cut { wanted, header },
            Ok(Some(header)) if checksum_is_right(&bytes[..wanted], &header) => Self::Whole(header),
            Ok(Some(_)) => Self::Malformed(Malformed::Checksum),
            // A whole body has its addresses: this cannot happen.
            Ok(None) => Self::Cut { wanted, header: None },
        }
    }
}

fn command(byte: u8) -> Result<Command, Malformed> {
    match (byte >> 4, byte & 0x0f) {
        (2, 0) => Ok(Command::Local),
        (2, 1) => Ok(Command::Proxy),
        (2, command) => Err(Malformed::Command(command)),
        (version, _) => Err(Malformed::Version(version)),
    }
}

/// What a header says of which `body` has come, of `len` bytes in all; `None` if the addresses are not all there.
fn header(fixed: &[u8; FIXED_LEN], body: &[u8], len: usize) -> Result<Option<Header>, Malformed> {
    let command = command(fixed[12])?;
    let addresses_len = match (command, fixed[13]) {
        // The receiver of LOCAL discards family and addresses; what follows them nobody can find then, but by the
        // family, where it is a known one.
        (Command::Local, family) => addresses_len(family).filter(|known| *known <= len).unwrap_or(len),
        (Command::Proxy, family) => addresses_len(family).ok_or(Malformed::Family(family))?,
    };
    if len < addresses_len {
        let (len, addresses) = (len as u16, addresses_len as u16);
        return Err(Malformed::TooShort { len, addresses });
    }
    if body.len() < addresses_len {
        return Ok(None);
    }
    let (block, tlvs) = body.split_at(addresses_len);
    let addresses = match command {
        Command::Local => Addresses::Unspecified,
        Command::Proxy => addresses(fixed[13] >> 4, block),
    };
    let (link_id, tlvs) = walk(tlvs, len - addresses_len)?;
    Ok(Some(Header { command, addresses, link_id, tlvs, len: FIXED_LEN + len }))
}

/// Length of the addresses of a family and transport; `None` if they do not exist.
fn addresses_len(family: u8) -> Option<usize> {
    match (family >> 4, family & 0x0f) {
        (_, 3..) => None,
        (0, _) => Some(0),
        (1, _) => Some(12),
        (2, _) => Some(36),
        (3, _) => Some(216),
        _ => None,
    }
}

/// The addresses in a block that is long enough for its family.
fn addresses(family: u8, mut block: &[u8]) -> Addresses {
    let ends: [IpAddr; 2] = match family {
        1 => [(); 2].map(|()| Ipv4Addr::from(block.get_u32()).into()),
        2 => [(); 2].map(|()| Ipv6Addr::from(block.get_u128()).into()),
        3 => return Addresses::Unix,
        _ => return Addresses::Unspecified,
    };
    let [source, destination] = ends.map(|address| SocketAddr::from((address, block.get_u16())));
    Addresses::Inet { source, destination }
}

/// Azure's `LinkID` and the number of TLVs in what has come of `len` bytes of them.
fn walk(mut tlvs: &[u8], len: usize) -> Result<(Option<u32>, u16), Malformed> {
    let missing = len - tlvs.len();
    let (mut link_id, mut count) = (None, 0);
    while let [kind, high, low, rest @ ..] = tlvs {
        let value_len = u16::from_be_bytes([*high, *low]);
        if usize::from(value_len) > rest.len() + missing {
            return Err(Malformed::Tlv { kind: *kind });
        }
        let Some((value, after)) = rest.split_at_checked(value_len.into()) else {
            return Ok((link_id, count));
        };
        if let (TLV_AZURE, [AZURE_LINK_ID, id @ ..]) = (*kind, value) {
            let id = id.try_into().map_err(|_| Malformed::LinkId { len: value_len })?;
            link_id = Some(u32::from_le_bytes(id));
        }
        count += 1;
        tlvs = after;
    }
    match tlvs.first() {
        // One or two bytes that are no TLV's beginning.
        Some(kind) if missing == 0 || missing + tlvs.len() < 3 => Err(Malformed::Tlv { kind: *kind }),
        _ => Ok((link_id, count)),
    }
}

/// Whether a whole header's checksum is right, if it has one: `CRC32c` over the header with the checksum's bytes as 0.
fn checksum_is_right(bytes: &[u8], header: &Header) -> bool {
    if header.tlvs == 0 {
        return true;
    }
    let body = header.len - FIXED_LEN;
    let mut at = FIXED_LEN + addresses_len(bytes[13]).filter(|known| *known <= body).unwrap_or(body);
    while let Some([kind, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([*high, *low]));
        if let (TLV_CRC32C, Some(crc)) = (*kind, bytes.get(value.clone()).and_then(|crc| crc.try_into().ok()))
        {
            let bytes = bytes.iter().enumerate();
            let zeroed = bytes.map(|(index, byte)| if value.contains(&index) { 0 } else { *byte });
            return u32::from_be_bytes(crc) == crc32c(zeroed);
        }
        at = value.end;
    }
    true
}

/// `CRC32c` (RFC 3720, appendix B.4), a bit at a time: a header is short, and few have one.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
mod tests;
