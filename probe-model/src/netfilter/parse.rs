//! Reads `iptables-save`.

use core::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Base, Chain, Hook, Match, Policy, Rule, Ruleset, Target, Test};
use crate::tuple::Protocol;

/// Why text is no `iptables-save` output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What was expected and found.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

pub(super) fn ruleset(text: &str) -> Result<Ruleset, ParseError> {
    let mut ruleset = Ruleset::default();
    let mut table: Option<String> = None;
    for (idx, line) in text.lines().enumerate() {
        let error = |what: String| ParseError { line: idx + 1, what };
        let line = line.trim();
        let (first, rest) = line.split_at(line.chars().next().map_or(0, char::len_utf8));
        match (first, &table) {
            ("" | "#", _) => {}
            ("*", _) => {
                ruleset.tables.entry(rest.to_owned()).or_default();
                table = Some(rest.to_owned());
            }
            ("C", Some(_)) if line == "COMMIT" => table = None,
            (":", Some(table)) => {
                let mut words = rest.split_whitespace();
                let name =
                    words.next().ok_or_else(|| error("expected a chain's name after `:`".to_owned()))?;
                let policy = match words.next() {
                    Some("ACCEPT") => Some(Policy::Accept),
                    Some("DROP") => Some(Policy::Drop),
                    _ => None,
                };
                ruleset.chain(table, name).policy = policy;
            }
            ("-" | "[", Some(table)) => {
                let (chain, rule) = parse_rule(line).map_err(error)?;
                ruleset.chain(table, &chain).rules.push(rule);
            }
            (_, None) => return Err(error(format!("expected `*table`, found `{line}`"))),
            (_, Some(_)) => {
                return Err(error(format!("expected a chain, a rule or `COMMIT`, found `{line}`")));
            }
        }
    }
    match table {
        Some(table) => Err(ParseError {
            line: text.lines().count(),
            what: format!("table `{table}` has no `COMMIT`; the text is truncated"),
        }),
        None => Ok(ruleset),
    }
}

impl Ruleset {
    /// A chain of iptables', made if it is not there yet.
    fn chain(&mut self, table: &str, name: &str) -> &mut Chain {
        let chains = self.tables.entry(table.to_owned()).or_default();
        let new = || Chain { base: base(table, name), ..Chain::default() };
        chains.entry(name.to_owned()).or_insert_with(new)
    }
}

/// Where the kernel enters a built-in chain.
///
/// Source: `enum nf_ip_hook_priorities` of `include/uapi/linux/netfilter_ipv4.h`.
fn base(table: &str, chain: &str) -> Option<Base> {
    let hook = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
        .into_iter()
        .find(|hook| hook.chain() == chain)?;
    let priority = match (table, hook) {
        ("raw", Hook::Prerouting | Hook::Output) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", Hook::Input | Hook::Postrouting) => 100,
        ("filter", Hook::Input | Hook::Forward | Hook::Output) => 0,
        _ => return None,
    };
    Some(Base { hook, priority, nat: table == "nat" })
}

/// Splits at spaces outside double quotes; a backslash inside quotes escapes.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => all.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    all
}

/// The chain and the rule of one `-A` line.
fn parse_rule(line: &str) -> Result<(String, Rule), String> {
    let all = words(line);
    let mut rest = all.iter().map(String::as_str).skip(usize::from(line.starts_with('['))).peekable();
    let chain = match (rest.next(), rest.next()) {
        (Some("-A"), Some(chain)) => chain.to_owned(),
        _ => return Err(format!("expected `-A CHAIN …`, found `{line}`")),
    };
    let mut matches = Vec::new();
    let mut target_name: Option<(String, bool)> = None;
    let mut target_options: Vec<(String, Vec<String>)> = Vec::new();
    let mut negated = false;
    while let Some(word) = rest.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let mut values = Vec::new();
        // A `!` before a value is the old spelling of a negation.
        while let Some(value) = rest.next_if(|next| !next.starts_with('-') && *next != "!") {
            values.push(value.to_owned());
        }
        let value = values.first().map(String::as_str);
        match (word, value) {
            ("-j", Some(name)) => target_name = Some((name.to_owned(), false)),
            ("-g", Some(name)) => target_name = Some((name.to_owned(), true)),
            ("-m", _) if value == Some("socket") => {
                matches.push(Match { negated, test: Test::Socket });
            }
            // kube-proxy's session affinity: this backend if the client was there before, which is not known here.
            ("--rcheck", _) => matches.push(Match { negated, test: Test::Random }),
            // Names of modules, and options that narrow nothing by themselves.
            (
                "-m" | "--comment" | "--mode" | "--transparent" | "--set" | "--name" | "--rsource"
                | "--seconds" | "--reap" | "--mask",
                _,
            ) => {}
            (option, _) if target_name.is_some() => target_options.push((option.to_owned(), values)),
            (option, value) => {
                let test = parse_test(option, value).unwrap_or_else(|| {
                    Test::Unknown(format!("{option} {}", values.join(" ")).trim().to_owned())
                });
                matches.push(Match { negated, test });
            }
        }
        negated = false;
    }
    let target = target(target_name, &target_options);
    let text = all
        .iter()
        .skip(usize::from(line.starts_with('[')))
        .map(|word| quote(word))
        .collect::<Vec<_>>()
        .join(" ");
    Ok((chain, Rule { text, matches, target }))
}

fn quote(word: &str) -> String {
    if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() }
}

/// One condition; `None` if plsprobe does not know it.
fn parse_test(option: &str, value: Option<&str>) -> Option<Test> {
    let value = value?;
    Some(match option {
        "-s" => Test::Source(net(value)?),
        "-d" => Test::Destination(net(value)?),
        "-p" if value == "all" => return Some(Test::Source(Ipv4Net::default())),
        "-p" => Test::Protocol(Protocol::parse(value)?),
        "-i" => Test::InDev(value.to_owned()),
        "-o" => Test::OutDev(value.to_owned()),
        "--dport" | "--dports" => Test::DestinationPort(ports(value)?),
        "--sport" | "--sports" => Test::SourcePort(ports(value)?),
        "--mark" => {
            let (value, mask) = masked(value)?;
            Test::Mark { value, mask }
        }
        "--dst-type" if value == "LOCAL" => Test::DestinationLocal,
        "--src-type" if value == "LOCAL" => Test::SourceLocal,
        "--ctstate" | "--state" => Test::ConntrackState(value.split(',').map(str::to_owned).collect()),
        "--probability" => Test::Random,
        _ => return None,
    })
}

fn net(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
}

fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let range = |part: &str| match part.split_once(':') {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => part.parse().ok().map(|port| (port, port)),
    };
    text.split(',').map(range).collect()
}

/// `0x4000/0x4000`, with or without the mask.
fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn target(name: Option<(String, bool)>, options: &[(String, Vec<String>)]) -> Target {
    let Some((name, goto)) = name else { return Target::Continue };
    let option = |wanted: &str| {
        options
            .iter()
            .find(|(option, _)| option == wanted)
            .and_then(|(_, values)| values.first())
            .map(String::as_str)
    };
    let written = || {
        let words = options.iter().map(|(option, values)| format!("{option} {}", values.join(" ")));
        std::iter::once(name.clone()).chain(words).collect::<Vec<_>>().join(" ")
    };
    let unknown = || Target::Unknown(written());
    match name.as_str() {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "REJECT" => Target::Reject,
        "RETURN" => Target::Return,
        "MARK" => mark(&option).unwrap_or_else(unknown),
        "DNAT" => option("--to-destination").and_then(destinations).map_or_else(unknown, Target::Dnat),
        "SNAT" => option("--to-source")
            .and_then(|to| to.split(':').next()?.parse().ok())
            .map_or_else(unknown, Target::Snat),
        "MASQUERADE" => Target::Masquerade,
        // None of these changes or stops the packet.
        "CT" | "LOG" | "NFLOG" | "ULOG" | "TRACE" | "CONNMARK" | "CHECKSUM" | "TCPMSS" | "DSCP" | "TOS"
        | "CLASSIFY" | "AUDIT" | "SET" => Target::Continue,
        // Targets are upper case and not chains of the table; a chain that is missing shows in the walk.
        "REDIRECT" | "TPROXY" | "NETMAP" | "TEE" | "SYNPROXY" | "HMARK" => unknown(),
        "NFQUEUE" | "QUEUE" => Target::Queue(written()),
        _ if goto => Target::Goto(name),
        _ => Target::Jump(name),
    }
}

/// The mark that a MARK target makes of `mark`: `(mark & !mask) ^ value`.
fn mark<'a>(option: &impl Fn(&str) -> Option<&'a str>) -> Option<Target> {
    if let Some((value, mask)) = option("--set-xmark").and_then(masked) {
        return Some(Target::Mark { value, mask });
    }
    if let Some((value, mask)) = option("--set-mark").and_then(masked) {
        return Some(Target::Mark { value, mask: mask | value });
    }
    if let Some((value, _)) = option("--or-mark").and_then(masked) {
        return Some(Target::Mark { value, mask: value });
    }
    option("--and-mark").and_then(masked).map(|(value, _)| Target::Mark { value: 0, mask: !value })
}

/// `10.0.0.143:80`, `10.0.0.143`, or a range of addresses.
fn destinations(text: &str) -> Option<Vec<(Ipv4Addr, Option<u16>)>> {
    let (addresses, port) = match text.split_once(':') {
        Some((addresses, port)) => (addresses, Some(port.parse().ok()?)),
        None => (text, None),
    };
    if let Some((first, last)) = addresses.split_once('-') {
        let (first, last) = (first.parse::<Ipv4Addr>().ok()?, last.parse::<Ipv4Addr>().ok()?);
        let range = u32::from(first)..=u32::from(last);
        return (range.clone().count() <= 256).then(|| range.map(|address| (address.into(), port)).collect());
    }
    Some(vec![(addresses.parse().ok()?, port)])
}

#[cfg(test)]
mod tests {
    use super::ruleset;

    #[test]
    fn who_may_be_given_packets() {
        let queues = |rule: &str| {
            let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n:IDS - [0:0]\n{rule}\nCOMMIT\n");
            ruleset(&text).unwrap().may_queue()
        };
        assert!(queues("-A IDS -p tcp --dport 80 -j NFQUEUE --queue-num 3 --queue-bypass"));
        assert!(queues("-A FORWARD -j QUEUE"));
        assert!(!queues("-A FORWARD -j DROP"));
        assert!(!queues("-A FORWARD -p tcp -m comment --comment NFQUEUE -j IDS"));
    }

    #[test]
    fn a_line_may_begin_with_any_character() {
        let error = ruleset("*nat\nھ KUBE-SERVICES\nCOMMIT\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2: expected a chain, a rule or `COMMIT`, found `ھ KUBE-SERVICES`"
        );
    }
}
