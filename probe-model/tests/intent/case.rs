//! One set of policy objects, and what Cilium's engine made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use probe_model::cilium::Direction;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::PolicyKey;
use probe_model::intent::engine::{DirectionIntent, Engine, IntentVerdict};
use probe_model::intent::entries::{Entry, Origin};
use probe_model::intent::label::Labels;
use probe_model::intent::object::{Authentication, read};
use serde_json::Value;

use crate::universe::{Universe, labels, list, number, text};

/// One case.
pub(crate) struct Case(Value);

/// What a comparison came to.
#[derive(Default)]
pub(crate) struct Compared {
    pub(crate) entries: usize,
    pub(crate) verdicts: usize,
    pub(crate) differences: Vec<String>,
}

/// An entry without its key: deny, proxy, authentication, and the policies behind it.
type Row = (bool, bool, String, BTreeSet<Vec<String>>);

impl Case {
    pub(crate) fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).expect("a case is one line of JSON"))
    }

    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.0["case"], self.0["name"].as_str().unwrap_or_default()).trim_end().to_owned()
    }

    /// Judges the objects and says where the answers differ.
    pub(crate) fn compare(&self, universe: &Universe) -> Compared {
        let mut compared = Compared::default();
        let objects = list(&self.0, "objects");
        let engine = Engine::new(universe.cluster.clone(), read(objects, &universe.cluster.options));
        self.compare_rejected(&engine, &mut compared.differences);
        let numbers = self.compare_prefixes(&engine, &mut compared.differences);
        for subject in list(&self.0, "subjects") {
            let (namespace, name) = text(subject, "endpoint").split_once('/').expect("namespace/name");
            let pod = engine.cluster().pod(namespace, name).expect("a pod of the universe").clone();
            for direction in [Direction::Ingress, Direction::Egress] {
                let intent = engine.judge(&pod, direction);
                let at = format!("{namespace}/{name} {direction}");
                if !intent.unevaluated.is_empty() {
                    compared.differences.push(format!("{at}: not evaluated: {:?}", intent.unevaluated));
                }
                let expected = subject[&format!("{direction}_enforced")].as_bool();
                if Some(intent.enforced) != expected {
                    compared
                        .differences
                        .push(format!("{at}: enforced {}, expected {expected:?}", intent.enforced));
                }
                compare_entries(&engine, &intent, subject, &numbers, &at, &mut compared, self.is_unstable());
                compare_verdicts(&engine, universe, &intent, subject, &at, &mut compared);
            }
        }
        compared
    }

    /// Whether the reference itself gives different derivations from run to run.
    fn is_unstable(&self) -> bool {
        !self.0["unstable"].is_null()
    }

    fn compare_rejected(&self, engine: &Engine, differences: &mut Vec<String>) {
        let expected: BTreeMap<usize, &str> =
            list(&self.0, "rejected").iter().map(|one| (number(one, "object"), text(one, "error"))).collect();
        let found: BTreeMap<usize, &[String]> =
            engine.rejected().iter().map(|one| (one.object, one.reasons.as_slice())).collect();
        for object in expected.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            match (expected.get(object), found.get(object)) {
                (Some(error), Some(reasons)) => {
                    if !reasons.iter().any(|reason| words(reason) == words(error)) {
                        differences
                            .push(format!("object {object}: refused for {reasons:?}, expected `{error}`"));
                    }
                }
                (expected, found) => {
                    differences.push(format!("object {object}: refused {found:?}, expected {expected:?}"));
                }
            }
        }
    }

    /// Compares the prefixes that have identities; the reference's number of each of ours.
    fn compare_prefixes(&self, engine: &Engine, differences: &mut Vec<String>) -> BTreeMap<Identity, u32> {
        let theirs = self.0["cidr_identity_labels"].as_object().expect("labels of CIDR identities");
        let theirs: BTreeMap<IpNet, (u32, Labels)> = theirs
            .iter()
            .map(|(number, list)| (number.parse().expect("a number"), labels(list)))
            .map(|(number, labels): (u32, _)| (labels.prefix().expect("a prefix"), (number, labels)))
            .collect();
        let ours: BTreeMap<IpNet, (Identity, &Labels)> = engine
            .cluster()
            .identities
            .iter()
            .filter(|(identity, _)| identity.is_local_scope())
            .map(|(identity, labels)| (labels.prefix().expect("a prefix"), (*identity, labels)))
            .collect();
        let mut numbers = BTreeMap::new();
        for prefix in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
            match (ours.get(prefix), theirs.get(prefix)) {
                (Some((identity, own)), Some((number, expected))) => {
                    numbers.insert(*identity, *number);
                    if *own != expected {
                        differences.push(format!("{prefix}: labels {own:?}, expected {expected:?}"));
                    }
                }
                (found, expected) => differences.push(format!("{prefix}: {found:?}, expected {expected:?}")),
            }
        }
        for (address, expected) in self.0["ip_identities"].as_object().expect("identities of addresses") {
            let (_, identity) = engine.cluster().lookup(address.parse().expect("an address"));
            let found = numbers.get(&identity).copied().unwrap_or(identity.0);
            if Some(u64::from(found)) != expected.as_u64() {
                differences.push(format!("{address} has identity {found}, expected {expected}"));
            }
        }
        numbers
    }
}

fn compare_verdicts(
    engine: &Engine,
    universe: &Universe,
    intent: &DirectionIntent,
    subject: &Value,
    at: &str,
    compared: &mut Compared,
) {
    let expected = subject["verdicts"][&intent.direction.to_string()].as_object().expect("verdicts");
    for (address, letters) in expected {
        let peer: IpAddr = address.parse().expect("an address");
        let (_, identity) = engine.cluster().lookup(peer);
        let letter = |(protocol, port): &(_, u16)| match intent.verdict(identity, *protocol, *port) {
            IntentVerdict::Allowed => 'A',
            IntentVerdict::Redirected => 'P',
            IntentVerdict::Authentication => 'R',
            IntentVerdict::Denied => 'X',
            IntentVerdict::DefaultDeny => '-',
        };
        let found: String = universe.ports.iter().map(letter).collect();
        compared.verdicts += found.len();
        if Some(found.as_str()) != letters.as_str() {
            compared.differences.push(format!("{at} {address}: verdicts {found}, expected {letters}"));
        }
    }
}

fn compare_entries(
    engine: &Engine,
    intent: &DirectionIntent,
    subject: &Value,
    numbers: &BTreeMap<Identity, u32>,
    at: &str,
    compared: &mut Compared,
    ignore_derivation: bool,
) {
    let ours: BTreeMap<String, Row> = intent
        .entries
        .iter()
        .map(|entry| (key(&entry.key, numbers), row(engine, intent.direction, &entry.entry)))
        .collect();
    let direction = intent.direction.to_string();
    let theirs = list(subject, "entries").iter().filter(|entry| text(entry, "direction") == direction);
    let theirs: BTreeMap<String, Row> =
        theirs.map(|entry| (expected_key(entry), expected_row(entry))).collect();
    compared.entries += ours.len();
    for key in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
        let (found, expected) = (ours.get(key), theirs.get(key));
        let is_same = match (found, expected) {
            (Some(found), Some(expected)) if ignore_derivation => {
                (found.0, found.1, &found.2) == (expected.0, expected.1, &expected.2)
            }
            (found, expected) => found == expected,
        };
        if !is_same {
            let show = |row: Option<&Row>| row.map_or("no entry".to_owned(), shown);
            compared.differences.push(format!("{at} {key}: {}, expected {}", show(found), show(expected)));
        }
    }
}

fn key(key: &PolicyKey, numbers: &BTreeMap<Identity, u32>) -> String {
    let identity = numbers.get(&key.sec_label).copied().unwrap_or(key.sec_label.0);
    format!("{identity} {}/{}/{}", key.protocol, key.dport, key.l4_prefix().saturating_sub(8))
}

fn expected_key(entry: &Value) -> String {
    let number = |name: &str| number::<u64>(entry, name);
    let (identity, protocol) = (number("identity"), number("protonum"));
    format!("{identity} {protocol}/{}/{}", number("port"), number("port_prefix_len"))
}

fn row(engine: &Engine, direction: Direction, entry: &Entry) -> Row {
    let authentication = match entry.authentication {
        Authentication::Disabled => "disabled",
        Authentication::Required => "spire",
        Authentication::AlwaysFail => "test-always-fail",
    };
    let own = |name: &str| vec![format!("reserved:io.cilium.policy.derived-from={name}")];
    let labels = |origin: &Origin| match origin {
        Origin::Policy(number) => engine.policy(*number).expect("a policy").labels.clone(),
        Origin::NotEnforced => own(&format!("allow-any-{direction}")),
        Origin::Localhost => own("allow-localhost-ingress"),
        Origin::NoDefaultDeny => Vec::new(),
    };
    (entry.deny, entry.redirect, authentication.to_owned(), entry.derived_from.iter().map(labels).collect())
}

fn expected_row(entry: &Value) -> Row {
    let flag = |name: &str| entry[name].as_bool().expect("a flag");
    let texts = |list: &Value| {
        list.as_array()
            .expect("labels")
            .iter()
            .map(|label| label.as_str().expect("a label").to_owned())
            .collect()
    };
    let derived_from = list(entry, "derived_from").iter().map(texts).collect();
    (flag("deny"), flag("proxy"), text(entry, "auth").to_owned(), derived_from)
}

fn shown((deny, proxy, authentication, derived_from): &Row) -> String {
    let last = |label: &String| label.rsplit('=').next().unwrap_or_default().to_owned();
    let origins: Vec<_> =
        derived_from.iter().map(|labels| labels.iter().map(last).collect::<Vec<_>>().join(" ")).collect();
    let verb = if *deny { "deny" } else { "allow" };
    let proxy = if *proxy { " proxy" } else { "" };
    format!("{verb}{proxy} {authentication} {origins:?}")
}

/// The words of a message, sorted: which of two names comes first differs from run to run.
fn words(message: &str) -> Vec<&str> {
    let mut words: Vec<_> = message.split_whitespace().collect();
    words.sort_unstable();
    words
}
