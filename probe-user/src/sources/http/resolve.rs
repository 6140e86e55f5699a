//! Addresses of a name: `/etc/hosts`, then the name servers of `/etc/resolv.conf`.
//!
//! By hand, because the static binary cannot use the C library's resolver, which loads libraries of the machine it runs on,
//! and waits as long as it likes.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a name server has for its answer.
const EACH: Duration = Duration::from_secs(2);
/// How often all name servers are asked.
const ROUNDS: usize = 2;
/// Record types.
const A: u16 = 1;
const AAAA: u16 = 28;

/// How names become addresses.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    /// The name servers; `None` for those of `/etc/resolv.conf`.
    pub servers: Option<Vec<SocketAddr>>,
}

impl Resolver {
    /// The addresses of `host`, IPv4 before IPv6.
    ///
    /// # Errors
    ///
    /// If it has none, or no name server says so in time.
    pub fn resolve(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if self.servers.is_none() {
            let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            let known = in_hosts(&hosts, host);
            if !known.is_empty() {
                return Ok(known);
            }
        }
        let servers = if let Some(servers) = &self.servers {
            servers.clone()
        } else {
            let text = std::fs::read_to_string("/etc/resolv.conf");
            name_servers(&text.context("failed to read `/etc/resolv.conf`")?)
        };
        ensure!(!servers.is_empty(), "no name server in `/etc/resolv.conf` to ask for `{host}`");
        let mut last = None;
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            match ask_both(*server, host, deadline.min(Instant::now() + EACH)) {
                Ok(addresses) if addresses.is_empty() => {
                    bail!("name `{host}` has no address; {server} says so")
                }
                Ok(addresses) => return Ok(addresses),
                Err(error) => {
                    last = Some(
                        error.context(format!("name server {server} did not say the address of `{host}`")),
                    );
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(last.context("no time was left to ask for the address")?)
    }
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    let mut all: Vec<IpAddr> = lines.filter_map(address).collect();
    all.sort_by_key(IpAddr::is_ipv6);
    all
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    servers.map(|address: IpAddr| SocketAddr::new(address, 53)).collect()
}

/// IPv6 addresses only where there are none of IPv4.
fn ask_both(server: SocketAddr, host: &str, deadline: Instant) -> Result<Vec<IpAddr>> {
    let found = ask(server, host, A, deadline)?;
    if found.is_empty() { ask(server, host, AAAA, deadline) } else { Ok(found) }
}

fn ask(server: SocketAddr, host: &str, record: u16, deadline: Instant) -> Result<Vec<IpAddr>> {
    let mut id = [0; 2];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut id).map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    let query = query(id, host, record)?;
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer in time");
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let message = &buffer[..length];
        // Another query's answer, come late.
        if message.get(..2) != Some(&id) {
            continue;
        }
        if message.get(2).is_some_and(|flags| flags & 2 != 0) {
            return addresses(&over_tcp(server, &query, deadline)?, record);
        }
        return addresses(message, record);
    }
}

/// For answers that are too long for UDP.
fn over_tcp(server: SocketAddr, query: &[u8], deadline: Instant) -> Result<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "no answer in time");
    let mut stream = super::Timed { stream: TcpStream::connect_timeout(&server, left)?, deadline };
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    ensure!(message.get(..2) == query.get(..2), "the answer is another query's");
    Ok(message)
}

/// A question with recursion desired. Source: RFC 1035, section 4.
fn query(id: [u8; 2], host: &str, record: u16) -> Result<Vec<u8>> {
    let mut message = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in host.trim_end_matches('.').split('.') {
        let is_label = (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic());
        ensure!(is_label, "`{}` is no host name", super::shown(host));
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend([record.to_be_bytes(), [0, 1]].concat());
    Ok(message)
}

/// The addresses in an answer; the names on the way to them are not looked at.
fn addresses(message: &[u8], record: u16) -> Result<Vec<IpAddr>> {
    let short = "the answer is cut short";
    let u16_at = |at: usize| -> Result<u16> {
        let bytes = message.get(at..at + 2).context(short)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    match u16_at(2)? & 0xf {
        0 => {}
        3 => return Ok(Vec::new()),
        code => bail!("it answers with error {code}"),
    }
    let (questions, answers) = (u16_at(4)?, u16_at(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(message, at).context(short)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(message, at).context(short)?;
        let (kind, length) = (u16_at(at)?, usize::from(u16_at(at + 8)?));
        let data = message.get(at + 10..at + 10 + length).context(short)?;
        at += 10 + length;
        match (kind == record, <[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            (true, Ok(v4), _) if record == A => found.push(IpAddr::from(v4)),
            (true, _, Ok(v6)) if record == AAAA => found.push(IpAddr::from(v6)),
            _ => {}
        }
    }
    Ok(found)
}

/// Where the name that begins at `at` ends: after its labels, or after the reference to another's.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// A name server that answers each query with `answer`, and what became of one for `management.example`.
    fn answered(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Result<Vec<IpAddr>> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let servers = Some(vec![socket.local_addr().unwrap()]);
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&answer(&buffer[..length]), from);
            }
        });
        Resolver { servers }.resolve("management.example", soon())
    }

    /// The answer to a query: these records, each a type and its data.
    fn answer(query: &[u8], code: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2..4].copy_from_slice(&[0x81, 0x80 | code]);
        message[7] = records.len() as u8;
        for (kind, data) in records {
            message.extend([0xc0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    fn kind(query: &[u8]) -> u16 {
        u16::from_be_bytes([query[query.len() - 4], query[query.len() - 3]])
    }

    #[test]
    fn addresses_after_other_names() {
        let found = answered(|query| {
            answer(query, 0, &[(5, b"\x03abc\x00"), (A, &[10, 0, 0, 1]), (A, &[10, 0, 0, 2])])
        });
        assert_eq!(found.unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
    }

    #[test]
    fn ipv6_where_there_is_no_ipv4() {
        let v6: Ipv6Addr = "fd00::7".parse().unwrap();
        let found = answered(move |query| match kind(query) {
            AAAA => answer(query, 0, &[(AAAA, &v6.octets())]),
            _ => answer(query, 0, &[]),
        });
        assert_eq!(found.unwrap(), [IpAddr::from(v6)]);
    }

    #[test]
    fn no_such_name() {
        let error = answered(|query| answer(query, 3, &[])).unwrap_err().to_string();
        assert!(error.starts_with("name `management.example` has no address; 127.0.0.1:"), "{error}");
    }

    #[test]
    fn what_a_name_server_may_get_wrong() {
        let error = |found: Result<Vec<IpAddr>>| format!("{:#}", found.unwrap_err());
        let refused = error(answered(|query| answer(query, 5, &[])));
        assert!(
            refused.ends_with("did not say the address of `management.example`: it answers with error 5"),
            "{refused}"
        );
        let cut = error(answered(|query| {
            let mut message = answer(query, 0, &[(A, &[10, 0, 0, 1])]);
            message.truncate(message.len() - 2);
            message
        }));
        assert!(cut.ends_with(": the answer is cut short"), "{cut}");
        // Never more than is there, whatever is wrong.
        let whole = answer(&query([1, 2], "a.b", A).unwrap(), 0, &[(A, &[10, 0, 0, 1])]);
        for at in 0..whole.len() {
            for byte in [0, 0x3f, 0xc0, 0xff] {
                let mut spoiled = whole.clone();
                spoiled[at] = byte;
                let _ = addresses(&spoiled, A);
                let _ = addresses(&spoiled[..at], A);
            }
        }
    }

    #[test]
    fn a_long_answer_comes_over_tcp() {
        // The same port for both, which is free on TCP if it is on UDP, or the next is tried.
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").ok()?;
                let tcp = std::net::TcpListener::bind(udp.local_addr().ok()?).ok()?;
                Some((udp, tcp))
            })
            .unwrap();
        let servers = Some(vec![udp.local_addr().unwrap()]);
        thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            let mut cut = answer(&buffer[..length], 0, &[]);
            cut[2] |= 2;
            udp.send_to(&cut, from).unwrap();
            let (mut stream, _) = tcp.accept().unwrap();
            let mut query = vec![0; length + 2];
            stream.read_exact(&mut query).unwrap();
            let whole = answer(&query[2..], 0, &[(A, &[10, 0, 0, 9])]);
            stream.write_all(&[&(whole.len() as u16).to_be_bytes(), &whole[..]].concat()).unwrap();
        });
        let found = Resolver { servers }.resolve("management.example", soon()).unwrap();
        assert_eq!(found, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn files() {
        let hosts = "127.0.0.1 localhost # x\n# 10.0.0.9 api\nfd00::1 API\n10.0.0.1\tother  api\n";
        assert_eq!(
            in_hosts(hosts, "api"),
            ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
        );
        assert_eq!(in_hosts(hosts, "x"), Vec::<IpAddr>::new());
        let servers =
            name_servers("search a b\nnameserver 168.63.129.16\n nameserver fd00::1\n;nameserver 1.1.1.1\n");
        assert_eq!(servers, ["168.63.129.16:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert!(query([0, 0], "a..b", A).is_err() && query([0, 0], "", A).is_err());
    }
}
