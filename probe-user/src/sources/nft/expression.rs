//! Statements of nft's JSON as conditions and targets.
//!
//! Source: libnftables-json(5).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use probe_model::netfilter::{Element, Field, Match, Target, Test};
use probe_model::tuple::Protocol;
use serde_json::Value;

use super::text::{self, only};

/// More addresses than this in one `dnat` are not followed.
const MAX_DESTINATIONS: u32 = 256;

/// The sets and maps of one table by name.
#[derive(Default)]
pub(super) struct Sets(BTreeMap<String, Value>);

impl Sets {
    pub(super) fn insert(&mut self, name: &str, set: Value) {
        self.0.insert(name.to_owned(), set);
    }

    /// A set or map that `@name` refers to.
    fn named(&self, reference: &str) -> Option<&Value> {
        self.0.get(reference.strip_prefix('@')?)
    }
}

/// What a rule does, one step after another, each under its conditions.
pub(super) fn steps(statements: &[Value], sets: &Sets) -> Vec<(Vec<Match>, Target)> {
    let mut rule = Reading { sets, matches: Vec::new(), steps: Vec::new() };
    for statement in statements {
        rule.statement(statement);
    }
    rule.steps
}

struct Reading<'s> {
    sets: &'s Sets,
    /// Conditions so far.
    matches: Vec<Match>,
    steps: Vec<(Vec<Match>, Target)>,
}

impl Reading<'_> {
    fn statement(&mut self, statement: &Value) {
        let Some((name, body)) = only(statement) else { return };
        let unknown = || Target::Unknown(text::statements(std::slice::from_ref(statement), None));
        let target = match name {
            "match" => return self.condition(statement, body),
            // What they let through depends on the packets before.
            "limit" | "quota" | "ct count" => return self.push(false, unknown_test(statement)),
            // None of these changes or stops the packet.
            "counter" | "log" | "notrack" | "set" | "map" | "dup" | "ct helper" | "ct timeout"
            | "ct expectation" | "flow" | "secmark" => return,
            "vmap" => return self.verdict_map(statement, body),
            "mangle" => match mangle(body) {
                Some(target) => return self.remark(target),
                None => unknown(),
            },
            "dnat" => destinations(body).map_or_else(unknown, Target::Dnat),
            "snat" => {
                let to = body["addr"].as_str().and_then(|address| address.parse().ok());
                to.map_or_else(unknown, Target::Snat)
            }
            "queue" => Target::Queue(text::statements(std::slice::from_ref(statement), None)),
            "masquerade" => Target::Masquerade,
            "reject" => Target::Reject,
            "xt" => match extension(body) {
                Some(target) => target,
                None if body["type"] == "match" => return self.push(false, unknown_test(statement)),
                None => unknown(),
            },
            _ => verdict(statement).unwrap_or_else(unknown),
        };
        self.steps.push((self.matches.clone(), target));
    }

    fn push(&mut self, negated: bool, test: Test) {
        self.matches.push(Match { negated, test });
    }

    /// The mark is another for what follows in the rule: what was tested of it does not hold any more.
    fn remark(&mut self, target: Target) {
        self.steps.push((self.matches.clone(), target));
        for condition in &mut self.matches {
            if matches!(condition.test, Test::Mark { .. }) {
                condition.test = Test::Unknown("a mark that the rule has changed since".to_owned());
            }
        }
    }

    fn condition(&mut self, statement: &Value, body: &Value) {
        let (left, right) = (&body["left"], &body["right"]);
        let negated = match body["op"].as_str() {
            Some("==" | "in") | None => false,
            Some("!=") => true,
            Some(op) => {
                let test = compared(left, op, right).unwrap_or_else(|| unknown_test(statement));
                self.implied(left);
                return self.push(false, test);
            }
        };
        self.implied(left);
        match equals(left, right, self.sets) {
            Some(Held::Test(test)) => self.push(negated, test),
            Some(Held::Always) if negated => self.push(false, never()),
            Some(Held::Always) => {}
            Some(Held::Never) if negated => {}
            Some(Held::Never) => self.push(false, never()),
            None => self.push(false, unknown_test(statement)),
        }
    }

    /// The protocol that a header's field stands for.
    fn implied(&mut self, left: &Value) {
        let parts = match only(left) {
            Some(("concat" | "&", Value::Array(parts))) => parts.as_slice(),
            _ => std::slice::from_ref(left),
        };
        for part in parts {
            let protocol = match part["payload"]["protocol"].as_str() {
                Some("tcp") => Protocol::TCP,
                Some("udp") => Protocol::UDP,
                Some("sctp") => Protocol::SCTP,
                Some("icmp") => Protocol::ICMP,
                Some("ip6" | "icmpv6") => return self.push(false, never()),
                _ => continue,
            };
            self.push(false, Test::Protocol(protocol));
        }
    }

    fn verdict_map(&mut self, statement: &Value, body: &Value) {
        let elements = match &body["data"] {
            Value::String(reference) => self.sets.named(reference).map(|map| &map["elem"]),
            data => data.get("set"),
        };
        let unknown = || Target::Unknown(text::statements(std::slice::from_ref(statement), None));
        let Some(elements) = elements else {
            return self.steps.push((self.matches.clone(), unknown()));
        };
        let elements = elements.as_array().map(Vec::as_slice).unwrap_or_default();
        let pairs: Vec<(&Value, Target)> = elements
            .iter()
            .filter_map(|element| {
                let [key, to] = element.as_array()?.as_slice() else { return None };
                Some((bare(key), verdict(to).unwrap_or_else(|| queue(to).unwrap_or_else(unknown))))
            })
            .collect();
        let key = &body["key"];
        self.implied(key);
        if matches!(only(key), Some(("numgen" | "jhash" | "symhash", _))) {
            let targets = pairs.into_iter().map(|(_, target)| target).collect();
            return self.steps.push((self.matches.clone(), Target::Random(targets)));
        }
        if let Some(fields) = fields(key) {
            let mut read = Vec::new();
            for (value, target) in pairs {
                match element(&fields, value) {
                    Found::Element(element) => read.push((element, target)),
                    Found::Never => {}
                    Found::Unknown => return self.steps.push((self.matches.clone(), unknown())),
                }
            }
            return self.steps.push((self.matches.clone(), Target::Map { key: fields, elements: read }));
        }
        self.one_by_one(key, pairs);
    }

    /// A map whose keys are tested one after another: no two fit the same packet.
    fn one_by_one(&mut self, key: &Value, pairs: Vec<(&Value, Target)>) {
        for (value, target) in pairs {
            let test = match equals(key, value, self.sets) {
                Some(Held::Test(test)) => Some(test),
                Some(Held::Always) => None,
                Some(Held::Never) => continue,
                None => Some(Test::Unknown(format!("a map of {key}"))),
            };
            let matches =
                self.matches.iter().cloned().chain(test.map(|test| Match { negated: false, test })).collect();
            self.steps.push((matches, target));
        }
    }
}

/// What an element of a verdict map says, if it is a queue.
fn queue(to: &Value) -> Option<Target> {
    let (name, _) = only(to)?;
    (name == "queue").then(|| Target::Queue(text::statements(std::slice::from_ref(to), None)))
}

/// How a condition turned out.
enum Held {
    /// By the packet.
    Test(Test),
    /// For every packet that plsprobe follows: the first of an IPv4 connection.
    Always,
    /// For none.
    Never,
}

fn never() -> Test {
    Test::In { key: vec![Field::Protocol], elements: Vec::new() }
}

fn unknown_test(statement: &Value) -> Test {
    Test::Unknown(text::statements(std::slice::from_ref(statement), None))
}

/// `left == right`; `None` if plsprobe does not know it.
fn equals(left: &Value, right: &Value, sets: &Sets) -> Option<Held> {
    if let Some(fields) = fields(left) {
        return among(fields, right, sets);
    }
    let (kind, body) = only(left)?;
    let is = |yes: bool| Some(if yes { Held::Always } else { Held::Never });
    let word = right.as_str();
    match (kind, body["key"].as_str()) {
        ("&", _) => {
            let [masked, mask] = body.as_array()?.as_slice() else { return None };
            let value = u32::try_from(right.as_u64()?).ok()?;
            let mask = u32::try_from(mask.as_u64()?).ok()?;
            (masked["meta"]["key"] == "mark").then_some(Held::Test(Test::Mark { value, mask }))
        }
        ("meta", Some("mark")) => {
            let value = u32::try_from(right.as_u64()?).ok()?;
            Some(Held::Test(Test::Mark { value, mask: u32::MAX }))
        }
        ("meta", Some("iifname" | "iif")) => devices(right, Test::InDev),
        ("meta", Some("oifname" | "oif")) => devices(right, Test::OutDev),
        ("meta", Some("nfproto")) => is(word? == "ipv4"),
        ("meta", Some("protocol")) => is(word? == "ip"),
        ("ct", Some("state")) => {
            let states = words(right)?.iter().map(|state| state.to_uppercase()).collect();
            Some(Held::Test(Test::ConntrackState(states)))
        }
        ("ct", Some("status")) => match words(right)?.as_slice() {
            ["dnat"] => Some(Held::Test(Test::ConntrackState(vec!["DNAT".to_owned()]))),
            ["snat"] => Some(Held::Test(Test::ConntrackState(vec!["SNAT".to_owned()]))),
            _ => None,
        },
        ("ct", Some("direction")) => is(word? == "original"),
        ("fib", _) if body["result"] == "type" && word == Some("local") => {
            match words(&body["flags"])?.as_slice() {
                ["daddr"] => Some(Held::Test(Test::DestinationLocal)),
                ["saddr"] => Some(Held::Test(Test::SourceLocal)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Orders on one field: `tcp dport < 1024`.
fn compared(left: &Value, op: &str, right: &Value) -> Option<Test> {
    let [field] = fields(left)?.try_into().ok()?;
    let (first, last) = number(field, right)?;
    let range = match op {
        "<" => (0, first.checked_sub(1)?),
        "<=" => (0, last),
        ">" => (last.checked_add(1)?, u32::MAX),
        ">=" => (first, u32::MAX),
        _ => return None,
    };
    Some(Test::In { key: vec![field], elements: vec![vec![range]] })
}

/// One word, a list of words, or a set of them.
fn words(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(word) => Some(vec![word]),
        Value::Array(all) => all.iter().map(Value::as_str).collect(),
        _ => words(value.get("set")?),
    }
}

/// Interfaces by name, where `lxc*` stands for any ending.
fn devices(right: &Value, test: impl Fn(String) -> Test) -> Option<Held> {
    let names = words(right)?;
    if names.iter().any(|name| name.starts_with('@')) {
        return None;
    }
    let mut tests: Vec<Test> = names
        .into_iter()
        .map(|name| test(name.strip_suffix('*').map_or_else(|| name.to_owned(), |start| format!("{start}+"))))
        .collect();
    Some(Held::Test(if tests.len() == 1 { tests.remove(0) } else { Test::Any(tests) }))
}

/// The fields of a key; `None` if plsprobe does not know one.
fn fields(key: &Value) -> Option<Vec<Field>> {
    let parts = match only(key)? {
        ("concat", Value::Array(parts)) => parts.as_slice(),
        _ => std::slice::from_ref(key),
    };
    parts.iter().map(field).collect()
}

fn field(value: &Value) -> Option<Field> {
    let (kind, body) = only(value)?;
    if kind == "meta" {
        return (body["key"] == "l4proto").then_some(Field::Protocol);
    }
    let part = (kind == "payload").then(|| Some((body["protocol"].as_str()?, body["field"].as_str()?)))??;
    match part {
        ("ip", "saddr") => Some(Field::SourceAddress),
        ("ip", "daddr") => Some(Field::DestinationAddress),
        ("ip", "protocol") => Some(Field::Protocol),
        ("tcp" | "udp" | "sctp" | "th", "sport") => Some(Field::SourcePort),
        ("tcp" | "udp" | "sctp" | "th", "dport") => Some(Field::DestinationPort),
        _ => None,
    }
}

/// Whether the fields are one value, or among those of a set.
fn among(key: Vec<Field>, right: &Value, sets: &Sets) -> Option<Held> {
    let values = match right {
        Value::String(reference) if reference.starts_with('@') => {
            let set = sets.named(reference)?;
            if is_dynamic(set) {
                // Who is in it changes with every packet: either way.
                return Some(Held::Test(Test::Random));
            }
            set["elem"].as_array().map(Vec::as_slice).unwrap_or_default()
        }
        _ => match right.get("set").and_then(Value::as_array) {
            Some(values) => values.as_slice(),
            None => std::slice::from_ref(right),
        },
    };
    let mut elements = Vec::new();
    for value in values {
        match element(&key, bare(value)) {
            Found::Element(element) => elements.push(element),
            Found::Never => {}
            Found::Unknown => return None,
        }
    }
    Some(Held::Test(Test::In { key, elements }))
}

/// Whether packets add to the set, as to kube-proxy's of clients with session affinity.
fn is_dynamic(set: &Value) -> bool {
    words(&set["flags"]).is_some_and(|flags| flags.contains(&"dynamic") || flags.contains(&"timeout"))
}

/// An element without its comment and counters.
fn bare(value: &Value) -> &Value {
    value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value)
}

/// What an element of a set is to an IPv4 packet.
enum Found {
    Element(Element),
    /// One of IPv6.
    Never,
    Unknown,
}

fn element(key: &[Field], value: &Value) -> Found {
    let parts = match value.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(value),
    };
    if parts.len() != key.len() {
        return Found::Unknown;
    }
    let is_v6 = |part: &Value| {
        let address = part.as_str().or_else(|| part["prefix"]["addr"].as_str());
        address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
    };
    if parts.iter().any(is_v6) {
        return Found::Never;
    }
    let numbers = key.iter().zip(parts).map(|(field, part)| number(*field, part));
    numbers.collect::<Option<Element>>().map_or(Found::Unknown, Found::Element)
}

/// First and last of a value, a prefix or a range.
fn number(field: Field, value: &Value) -> Option<(u32, u32)> {
    if let Some(range) = value.get("range").and_then(Value::as_array) {
        let [first, last] = range.as_slice() else { return None };
        return Some((number(field, first)?.0, number(field, last)?.1));
    }
    if let Some(prefix) = value.get("prefix") {
        let address: Ipv4Addr = prefix["addr"].as_str()?.parse().ok()?;
        let net = Ipv4Net::new(address, u8::try_from(prefix["len"].as_u64()?).ok()?).ok()?;
        return Some((net.network().into(), net.broadcast().into()));
    }
    let one = match (field, value) {
        (_, Value::Number(number)) => u32::try_from(number.as_u64()?).ok()?,
        (Field::SourceAddress | Field::DestinationAddress, Value::String(text)) => {
            text.parse::<Ipv4Addr>().ok()?.into()
        }
        (Field::Protocol, Value::String(text)) => Protocol::parse(text)?.0.into(),
        _ => return None,
    };
    Some((one, one))
}

/// A verdict, or `None` if the object is none.
fn verdict(value: &Value) -> Option<Target> {
    let (name, body) = only(value)?;
    let chain = || body["target"].as_str().map(str::to_owned);
    Some(match name {
        "accept" => Target::Accept,
        "drop" => Target::Drop,
        "return" => Target::Return,
        "continue" => Target::Continue,
        "jump" => Target::Jump(chain()?),
        "goto" => Target::Goto(chain()?),
        _ => return None,
    })
}

/// What is set, [`Target::Continue`] if it matters to nobody here; `None` if it is not known what.
fn mangle(body: &Value) -> Option<Target> {
    let (kind, key) = only(&body["key"])?;
    match (kind, key["key"].as_str(), key["field"].as_str()) {
        ("meta", Some("mark"), _) => {
            let (and, xor) = mark(&body["value"])?;
            Some(Target::Mark { value: xor, mask: !and })
        }
        // Priorities, tracing, conntrack's own mark.
        ("meta" | "ct" | "tcp option", _, _) | ("payload", _, Some("dscp" | "ecn" | "ttl" | "checksum")) => {
            Some(Target::Continue)
        }
        _ => None,
    }
}

/// A new mark as `(old & and) ^ xor`.
fn mark(value: &Value) -> Option<(u32, u32)> {
    if let Some(number) = value.as_u64() {
        return Some((0, u32::try_from(number).ok()?));
    }
    let (op, body) = only(value)?;
    if op == "meta" {
        return (body["key"] == "mark").then_some((u32::MAX, 0));
    }
    let [left, right] = body.as_array()?.as_slice() else { return None };
    let (and, xor) = mark(left)?;
    let bits = u32::try_from(right.as_u64()?).ok()?;
    Some(match op {
        "&" => (and & bits, xor & bits),
        "|" => (and & !bits, xor & !bits | bits),
        "^" => (and, xor ^ bits),
        _ => return None,
    })
}

/// Every destination of a `dnat`.
fn destinations(body: &Value) -> Option<Vec<(Ipv4Addr, Option<u16>)>> {
    let port = match body.get("port") {
        Some(port) => Some(u16::try_from(port.as_u64()?).ok()?),
        None => None,
    };
    let address = body.get("addr")?;
    if let Some(map) = address.get("map") {
        return mapped(map, port);
    }
    if let Some(range) = address.get("range").and_then(Value::as_array) {
        let [first, last] = range.as_slice() else { return None };
        let end = |value: &Value| Some(u32::from(value.as_str()?.parse::<Ipv4Addr>().ok()?));
        let (first, last) = (end(first)?, end(last)?);
        let few = last.checked_sub(first).is_some_and(|more| more < MAX_DESTINATIONS);
        return few.then(|| (first..=last).map(|address| (address.into(), port)).collect());
    }
    Some(vec![(address.as_str()?.parse().ok()?, port)])
}

/// `dnat to numgen random mod 2 map { 0 : 10.0.0.143 . 80, … }`.
fn mapped(map: &Value, port: Option<u16>) -> Option<Vec<(Ipv4Addr, Option<u16>)>> {
    if !matches!(only(&map["key"])?, ("numgen" | "jhash" | "symhash", _)) {
        return None;
    }
    let elements = map["data"]["set"].as_array()?;
    let one = |element: &Value| {
        let [_, to] = element.as_array()?.as_slice() else { return None };
        match to.get("concat").and_then(Value::as_array).map(Vec::as_slice) {
            Some([address, port]) => {
                Some((address.as_str()?.parse().ok()?, Some(u16::try_from(port.as_u64()?).ok()?)))
            }
            _ => Some((to.as_str()?.parse().ok()?, port)),
        }
    };
    elements.iter().map(one).collect()
}

/// An extension of iptables', of which nft knows the name alone, [`Target::Continue`] if it changes nothing.
fn extension(body: &Value) -> Option<Target> {
    match (body["type"].as_str()?, body["name"].as_str()?) {
        ("match", "comment")
        | (
            "target",
            "CT" | "LOG" | "NFLOG" | "TRACE" | "CONNMARK" | "CHECKSUM" | "TCPMSS" | "DSCP" | "TOS"
            | "CLASSIFY" | "AUDIT" | "SET",
        ) => Some(Target::Continue),
        ("target", "MASQUERADE") => Some(Target::Masquerade),
        ("target", "REJECT") => Some(Target::Reject),
        _ => None,
    }
}
