//! An [`Explanation`] as text and JSON.

use std::io::{self, Write};
use std::net::IpAddr;

use probe_model::cilium::auth::AuthKey;
use probe_model::cilium::lb::Frontend;
use probe_model::cilium::policy::{PolicyKey, PolicyVerdict};
use probe_model::explain::{
    Advice, Explanation, FailedField, JudgedAs, Masquerade, NearMiss, Origin, Remedy, SourceBy, SourceHop,
    Tried, Verdict, source_history,
};
use probe_model::intent::why::{Miss, RulePart};
use probe_model::simulate::{
    Authenticated, Destination, IdentityOrigin, Outcome, PolicyStep, Sender, Step, Trajectory, Unjudged,
};
use probe_model::tuple::Protocol;
use probe_model::world::nat::{Disagreement, nat_sources};
use probe_model::world::{PolicyRef, World};
use serde_json::{Value, json};

use super::dump::{self, port_proto};
use super::{clean, json_line, list};

/// Version of the JSON that [`json()`] writes.
pub const SCHEMA: &str = "plsprobe.explain/1";

/// Missing facts that the text names; JSON has all.
const MISSING_SHOWN: usize = 4;

/// What the policy objects were asked about a drop by policy, or why they could not be; `None` if nobody asked.
pub type Advised<'a> = Option<&'a Result<Advice, String>>;

/// Writes the answer for people: the verdict, its cause, then the evidence.
///
/// # Errors
///
/// What `out` says.
pub fn text(
    world: &World,
    explanation: &Explanation,
    advised: Advised<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let advice = advised.and_then(|advised| advised.as_ref().ok());
    let head = format!("{}: {}", explanation.question.tuple, verdict_text(&explanation.verdict));
    writeln!(out, "{}", clean(&head))?;
    let mut line = |label: &str, text: &str| writeln!(out, "  {label:<9}{}", clean(text));
    let way = explanation.trajectory();
    line("cause", &format!("{} [{}]", explanation.cause.sentence, explanation.cause.code))?;
    for remedy in remedies(world, explanation, advice) {
        match &remedy {
            Remedy::Text(text) => line("remedy", text)?,
            Remedy::Command(command) => line("run", command)?,
            // After the evidence: it has lines of its own.
            Remedy::Yaml(_) => {}
        }
    }
    line("path", &path(world, way))?;
    for text in history(world, way) {
        line("source", &text)?;
    }
    for step in &way.steps {
        evidence(world, step, &mut line)?;
    }
    match (advice.and_then(|advice| advice.why.nearest()), &explanation.near_miss) {
        (Some(miss), _) => line("nearest", &miss_text(miss))?,
        (None, Some(near_miss)) => line("nearest", &near_miss_text(world, explanation, near_miss))?,
        (None, None) => {}
    }
    if !explanation.policies.is_empty() {
        line("policy", &policy_list(&explanation.policies))?;
    }
    for other in explanation.trajectories.iter().skip(1) {
        line("or", &format!("{}: {}", path(world, other), outcome_text(&other.outcome)))?;
    }
    for caveat in &explanation.caveats {
        line("caveat", &format!("{} [{}]", caveat.text, caveat.code))?;
    }
    let unadvised = advised.and_then(|advised| advised.as_ref().err());
    for why in unadvised.into_iter().chain(advice.iter().flat_map(|advice| &advice.reservations)) {
        line("no edit", why)?;
    }
    for disagreement in disagreements(world) {
        line("disagree", &disagreement.to_string())?;
    }
    line("rests on", &rests_on(world))?;
    let yaml = advice.and_then(|advice| advice.edits.first()).map(|tried| &tried.edit.yaml);
    if let Some(yaml) = yaml {
        writeln!(out, "\n# for kubectl apply -f -")?;
        for row in yaml.lines() {
            writeln!(out, "{}", clean(row))?;
        }
    }
    Ok(())
}

/// Where the sources of what is beyond the node contradict each other.
fn disagreements(world: &World) -> Vec<Disagreement> {
    nat_sources(world).disagreements.into_iter().chain(world.disagreements.iter().cloned()).collect()
}

/// What to do: the cause's own remedies, then the smallest edit of a policy.
fn remedies(world: &World, explanation: &Explanation, advice: Option<&Advice>) -> Vec<Remedy> {
    let edits = advice.into_iter().flat_map(Advice::remedies);
    explanation.remedies(world).into_iter().chain(edits).collect()
}

/// The nearest rule, and what failed in it.
fn miss_text(miss: &Miss) -> String {
    let failed: Vec<_> =
        miss.failed.iter().map(|failed| format!("{} ({})", failed.clause, failed.path)).collect();
    format!("{}: {}", miss.part, failed.join("; "))
}

/// The source's addresses, if it had several: a rule that names the first cannot match where the last is judged.
fn history(world: &World, way: &Trajectory) -> Vec<String> {
    let hops = source_history(world, way);
    if hops.len() < 2 {
        return Vec::new();
    }
    hops.iter().map(|hop| hop_text(world, hop)).collect()
}

fn hop_text(world: &World, hop: &SourceHop) -> String {
    let by = match &hop.by {
        SourceBy::Sender => "as it came".to_owned(),
        SourceBy::Netfilter { rule, masquerade } => {
            let whose = match masquerade {
                Masquerade::KubeProxy => "kube-proxy, as for externalTrafficPolicy Cluster",
                Masquerade::IpMasqAgent => "ip-masq-agent",
                Masquerade::Cilium => "Cilium's own rule",
                Masquerade::Other => "a netfilter rule",
            };
            format!("by {whose} ({rule})")
        }
        SourceBy::CiliumForward { node } => {
            let to = node.map_or_else(|| "the backend's node".to_owned(), |node| format!("node {node}"));
            format!("by Cilium on its way to {to}, as for externalTrafficPolicy Cluster")
        }
    };
    let ipcache = match hop.ipcache {
        Some((prefix, identity)) => format!("; ipcache {prefix} is {}", world.identity_text(identity)),
        None => String::new(),
    };
    let judged = match hop.judged {
        Some(JudgedAs::Here(identity, _)) => format!("; judged as {}", world.identity_text(identity)),
        Some(JudgedAs::OtherNode(identity)) => format!("; judged there as {}", world.identity_text(identity)),
        None => String::new(),
    };
    format!("{} {by}{ipcache}{judged}", hop.address)
}

/// What was read, and that nothing was observed.
pub(super) fn rests_on(world: &World) -> String {
    let version = world.version.as_ref().map(|version| format!(", Cilium {version}")).unwrap_or_default();
    let names: Vec<_> =
        world.missing.iter().take(MISSING_SHOWN).map(|missing| missing.what.as_str()).collect();
    let more = world.missing.len() - names.len();
    let missing = match (names.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("; missing: {}", names.join(", ")),
        (false, more) => format!("; missing: {} and {more} more", names.join(", ")),
    };
    let origin = if world.origin == "live" { "this node" } else { &world.origin };
    format!("the maps of {origin}{version}; no packet was observed{missing}")
}

/// One word, and the reason of a drop.
pub fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allowed => "allowed".to_owned(),
        Verdict::Dropped(reason) => format!("dropped by Cilium, {reason}"),
        Verdict::Filtered => "dropped by the node's netfilter".to_owned(),
        Verdict::Inconclusive(_) => "inconclusive".to_owned(),
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Allowed(_) => "allowed".to_owned(),
        Outcome::Dropped(reason) => format!("dropped by Cilium, {reason}"),
        Outcome::Filtered { rule, .. } => format!("dropped by netfilter, {rule}"),
        Outcome::Unknown(_) => "inconclusive".to_owned(),
    }
}

/// The way through the node in one line.
pub fn path(world: &World, way: &Trajectory) -> String {
    let mut parts = Vec::new();
    for step in &way.steps {
        match step {
            Step::FromNetwork { overlay: true, .. } => parts.push("Cilium's tunnel".to_owned()),
            Step::FromNetwork { dev, .. } => {
                parts.push(format!("in by {}", dev.as_deref().unwrap_or("the uplink")));
            }
            Step::FromPod(id) => parts.push(format!("from {}", world.endpoint_name(*id))),
            Step::FromHost => parts.push("from this node".to_owned()),
            Step::Reply(_) => parts.push("an answer by conntrack".to_owned()),
            Step::Related(_) => parts.push("an ICMP error about a connection".to_owned()),
            Step::Unjudged(why) => parts.push(unjudged_text(*why).to_owned()),
            Step::Frontend(frontend) => parts.push(format!("Cilium's service {}", frontend_text(frontend))),
            Step::Service { frontend, backend, .. } => {
                parts.push(format!("Cilium's service {} to {}", frontend_text(frontend), backend.socket()));
            }
            Step::Forward { node, sender } => parts.push(forward_text(*node, *sender)),
            Step::Netfilter { rule, after, .. } => {
                parts.push(format!("netfilter {} to {after}", target_of(rule)));
            }
            Step::Route { dev } => parts.push(format!("route {dev}")),
            Step::Identity { .. } => {}
            Step::Policy(step) => {
                parts.push(format!(
                    "{} policy of {}",
                    step.query.direction,
                    world.endpoint_name(step.endpoint)
                ));
            }
        }
    }
    match &way.outcome {
        Outcome::Allowed(Destination::Endpoint(_)) => parts.push("into the pod".to_owned()),
        Outcome::Allowed(Destination::Host) => parts.push("to the node itself".to_owned()),
        Outcome::Allowed(Destination::Network(dev)) => {
            parts.push(format!("out by {}", dev.as_deref().unwrap_or("the uplink")));
        }
        Outcome::Allowed(Destination::Judged) => {}
        Outcome::Dropped(_) | Outcome::Filtered { .. } => parts.push("dropped".to_owned()),
        Outcome::Unknown(_) => parts.push("unknown".to_owned()),
    }
    parts.join(" > ")
}

/// The target of a rule as `iptables-save` or nft writes it, in iptables' word: `DNAT`, `MASQUERADE`, ….
fn target_of(rule: &str) -> &str {
    if let Some((_, target)) = rule.split_once(" -j ") {
        return target.split(' ').next().unwrap_or(target);
    }
    let nfts = [("dnat to ", "DNAT"), ("snat to ", "SNAT"), ("masquerade", "MASQUERADE")];
    nfts.iter().find(|(words, _)| rule.contains(words)).map_or(rule, |(_, target)| target)
}

fn frontend_text(frontend: &Frontend) -> String {
    format!("{} ({})", dump::frontend_text(frontend), frontend.service.kind())
}

fn unjudged_text(why: Unjudged) -> &'static str {
    match why {
        Unjudged::Loopback => "back to the pod itself",
        Unjudged::FragmentationNeeded => "ICMP fragmentation needed, let through",
    }
}

/// To which node a service's packet goes, and as whose.
fn forward_text(node: Option<IpAddr>, sender: Sender) -> String {
    let to = node.map_or_else(|| "the backend's node".to_owned(), |node| format!("node {node}"));
    match sender {
        Sender::ThisNode(Some(address)) => format!("to {to}, from this node's {address}"),
        Sender::ThisNode(None) => format!("to {to}, from this node's address"),
        Sender::Client => format!("to {to}, from the client's own address"),
        Sender::Unknown => format!("to {to}"),
    }
}

/// What the other node will take the sender for.
fn sender_text(sender: Sender) -> &'static str {
    match sender {
        Sender::ThisNode(_) => {
            "the backend's node sees this node as the source, a remote-node identity there"
        }
        Sender::Client => "the backend's node sees the client as the source",
        Sender::Unknown => {
            "whom the backend's node sees as the source depends on `bpf-lb-mode`, which is not known"
        }
    }
}

/// The lines of evidence behind a step, if it needs one.
fn evidence(
    world: &World,
    step: &Step,
    line: &mut impl FnMut(&str, &str) -> io::Result<()>,
) -> io::Result<()> {
    match step {
        Step::Identity { address, identity, origin } => {
            let whose = world.identity_text(*identity);
            line("identity", &format!("{address} is {whose}: {}", identity_origin(*origin)))
        }
        Step::Netfilter { rule, .. } => line("rule", rule),
        Step::Reply(entry) | Step::Related(entry) | Step::Service { kept: Some(entry), .. } => {
            line("conntrack", &entry.to_string())
        }
        Step::Forward { sender, .. } => line("source", sender_text(*sender)),
        Step::Policy(step) => {
            line("entry", &entry_text(world, step))?;
            match &step.authenticated {
                Some(authenticated) => line("auth", &authenticated_text(world, authenticated)),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn authenticated_text(world: &World, authenticated: &Authenticated) -> String {
    let AuthKey { remote_sec_label, remote_node_id, auth_type, .. } = authenticated.key;
    let holds = match authenticated.until {
        Some(until) => format!("until {} s since 1970", until.unix_ns() / 1_000_000_000),
        None => "no entry".to_owned(),
    };
    let peer = world.identity_text(remote_sec_label);
    format!("type {auth_type} with {peer} on node id {remote_node_id}: {holds}")
}

/// Where an identity is from, as a clause.
pub fn identity_origin(origin: IdentityOrigin) -> String {
    match origin {
        IdentityOrigin::Ipcache(prefix) => format!("ipcache {prefix}"),
        IdentityOrigin::NoPrefix => "the ipcache has no prefix for it".to_owned(),
        IdentityOrigin::HostIgnored(prefix) => {
            format!(
                "ipcache {prefix} says host, which Cilium does not believe of a packet without the host's mark"
            )
        }
        IdentityOrigin::HostMark => "the packet carries the host's mark".to_owned(),
        IdentityOrigin::Mark => "the packet's mark carries it".to_owned(),
        IdentityOrigin::Endpoint(id) => format!("endpoint {id}'s own"),
        IdentityOrigin::SentOn => {
            "what another node sends on from outside through the tunnel is marked as world".to_owned()
        }
    }
}

/// The map entry that decided a policy check, or that none did.
pub fn entry_text(world: &World, step: &PolicyStep) -> String {
    let PolicyStep { map, query, decision, .. } = step;
    let direction = query.direction;
    let Some((key, entry)) = &decision.entry else {
        let (peer, protocol) = (world.identity_text(query.identity), Protocol(query.protocol));
        return format!("none in {map} for {direction} {peer}, {}/{protocol}", query.port);
    };
    let verb = if entry.deny() { "deny" } else { "allow" };
    let (who, matched) = (key_text(world, key), decision.match_type);
    let packets = entry.counters.map(|counters| format!(", {} packets so far", counters.packets));
    format!("{map}: {direction} {who} {verb} (match {matched}{})", packets.unwrap_or_default())
}

/// Peer and port of a key: `any identity, ANY`, `16777218 (cidr:10.224.0.8/32), 80/TCP`.
pub fn key_text(world: &World, key: &PolicyKey) -> String {
    let peer =
        if key.sec_label.0 == 0 { "any identity".to_owned() } else { world.identity_text(key.sec_label) };
    let ports = if key.l4_prefix() == 0 { "any port".to_owned() } else { port_proto(key) };
    format!("{peer}, {ports}")
}

/// The entry that came nearest, and what it lacked.
pub fn near_miss_text(world: &World, explanation: &Explanation, near_miss: &NearMiss) -> String {
    let Some(step) = explanation.policy() else { return key_text(world, &near_miss.key) };
    let asked = match near_miss.failed {
        FailedField::Port => format!("the port is {}", step.query.port),
        FailedField::Protocol => format!("the protocol is {}", Protocol(step.query.protocol)),
        FailedField::Identity => format!("the peer is {}", world.identity_text(step.query.identity)),
    };
    let by = if near_miss.policies.is_empty() {
        String::new()
    } else {
        format!(" of {}", policy_list(&near_miss.policies))
    };
    format!("allow {}{by}; but {asked}", key_text(world, &near_miss.key))
}

fn policy_list(policies: &[PolicyRef]) -> String {
    policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes the whole answer as one line of JSON.
///
/// # Errors
///
/// What `out` says.
pub fn json(
    world: &World,
    explanation: &Explanation,
    advised: Advised<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let advice = advised.and_then(|advised| advised.as_ref().ok());
    let mut value = value(world, explanation);
    value["remedies"] = remedies(world, explanation, advice).iter().map(remedy_value).collect();
    value["rules"] = advice.map_or(Value::Null, rules_value);
    value["no_rules"] =
        advised.and_then(|advised| advised.as_ref().err()).map_or(Value::Null, |why| json!(why));
    value["disagreements"] = disagreements(world).iter().map(|own| json!(own.to_string())).collect();
    json_line(&value, out)
}

/// Something to do as a JSON object.
pub(super) fn remedy_value(remedy: &Remedy) -> Value {
    match remedy {
        Remedy::Text(text) => json!({ "text": text }),
        Remedy::Command(command) => json!({ "command": command }),
        Remedy::Yaml(yaml) => json!({ "yaml": yaml }),
    }
}

/// What the policy objects say, rule by rule, and the edits that were tried.
fn rules_value(advice: &Advice) -> Value {
    let why = &advice.why;
    let part =
        |part: &RulePart| json!({ "policy": policy_value(&part.policy), "path": part.path.to_string() });
    let misses = why.misses.iter().map(|miss| {
        let failed = miss.failed.iter().map(|failed| {
            json!({ "path": failed.path.to_string(), "wants": failed.wants, "has": failed.has, "clause": failed.clause })
        });
        let mut value = part(&miss.part);
        value["failed"] = failed.collect();
        value
    });
    let edits = advice.edits.iter().map(|Tried { edit, also }| {
        json!({
            "policy": policy_value(&edit.policy), "path": edit.path.to_string(), "summary": edit.summary,
            "yaml": edit.yaml, "admits_also": also,
        })
    });
    json!({
        "from": match advice.origin { Origin::Agent => "agent", Origin::Objects => "objects" },
        "enforced_by": why.enforced_by.iter().map(part).collect::<Vec<_>>(),
        "admits": why.admits.iter().map(|hit| part(&hit.part)).collect::<Vec<_>>(),
        "denies": why.denies.iter().map(|hit| part(&hit.part)).collect::<Vec<_>>(),
        "misses": misses.collect::<Vec<_>>(),
        "edits": edits.collect::<Vec<_>>(),
        "reservations": advice.reservations,
    })
}

/// The whole answer as a JSON object.
pub fn value(world: &World, explanation: &Explanation) -> Value {
    let tuple = explanation.question.tuple;
    let mut value = json!({
        "schema": SCHEMA,
        "question": {
            "saddr": tuple.saddr.to_string(), "sport": tuple.sport, "daddr": tuple.daddr.to_string(),
            "dport": tuple.dport, "protocol": tuple.protocol.to_string(),
            "direction": explanation.question.direction.map(|direction| direction.to_string()),
        },
        "verdict": verdict_word(&explanation.verdict),
        "drop_reason": drop_reason(&explanation.verdict),
        "undecided": match &explanation.verdict { Verdict::Inconclusive(facts) => json!(facts), _ => Value::Null },
        "cause": { "code": explanation.cause.code.text(), "sentence": explanation.cause.sentence },
        "near_miss": explanation.near_miss.as_ref().map(near_miss_value),
        "caveats": explanation.caveats.iter()
            .map(|caveat| json!({ "code": caveat.code.text(), "text": caveat.text })).collect::<Vec<_>>(),
        "world": {
            "origin": world.origin, "cilium": world.version, "observed": false,
            "missing": world.missing.iter()
                .map(|missing| json!({ "what": missing.what, "why": missing.why })).collect::<Vec<_>>(),
        },
    });
    value["policies"] = list(&explanation.policies, policy_value);
    value["source_history"] = list(&source_history(world, explanation.trajectory()), hop_value);
    value["ways"] = list(&explanation.trajectories, |way| way_value(world, way));
    value
}

fn hop_value(hop: &SourceHop) -> Value {
    let by = match &hop.by {
        SourceBy::Sender => json!({ "by": "sender" }),
        SourceBy::Netfilter { rule, .. } => json!({ "by": "netfilter", "rule": rule }),
        SourceBy::CiliumForward { node } => {
            json!({ "by": "cilium", "node": node.map(|node| node.to_string()) })
        }
    };
    let (judged, elsewhere) = match hop.judged {
        Some(JudgedAs::Here(identity, _)) => (Some(identity.0), false),
        Some(JudgedAs::OtherNode(identity)) => (Some(identity.0), true),
        None => (None, false),
    };
    json!({
        "address": hop.address.to_string(), "rewritten": by,
        "ipcache": hop.ipcache.map(|(prefix, identity)| json!({ "prefix": prefix.to_string(), "identity": identity.0 })),
        "judged_as": judged, "on_other_node": elsewhere,
    })
}

fn verdict_word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Dropped(_) | Verdict::Filtered => "dropped",
        Verdict::Inconclusive(_) => "inconclusive",
    }
}

fn drop_reason(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Dropped(reason) => {
            json!({ "by": "cilium", "code": reason.0, "text": reason.text(), "name": reason.name() })
        }
        Verdict::Filtered => json!({ "by": "netfilter" }),
        _ => Value::Null,
    }
}

/// A policy object as JSON.
pub(super) fn policy_value(policy: &PolicyRef) -> Value {
    json!({ "kind": policy.kind, "namespace": policy.namespace, "name": policy.name })
}

fn key_value(key: &PolicyKey) -> Value {
    json!({
        "direction": key.direction.to_string(), "identity": key.sec_label.0, "protocol": key.protocol,
        "port": key.dport, "prefix_bits": key.l4_prefix(),
    })
}

fn near_miss_value(near_miss: &NearMiss) -> Value {
    let failed = match near_miss.failed {
        FailedField::Port => "port",
        FailedField::Protocol => "protocol",
        FailedField::Identity => "identity",
    };
    json!({
        "key": key_value(&near_miss.key), "failed": failed,
        "policies": near_miss.policies.iter().map(policy_value).collect::<Vec<_>>(),
    })
}

fn way_value(world: &World, way: &Trajectory) -> Value {
    let mut value = json!({
        "outcome": outcome_text(&way.outcome),
        "path": path(world, way),
        "packet": {
            "saddr": way.tuple.saddr.to_string(), "sport": way.tuple.sport,
            "daddr": way.tuple.daddr.to_string(), "dport": way.tuple.dport,
        },
    });
    value["steps"] = list(&way.steps, |step| step_value(world, step));
    value
}

fn step_value(world: &World, step: &Step) -> Value {
    match step {
        Step::FromNetwork { dev, overlay } => {
            json!({ "step": "from-network", "dev": dev, "overlay": overlay })
        }
        Step::FromPod(id) => {
            json!({ "step": "from-pod", "endpoint": id.0, "pod": world.endpoint_name(*id) })
        }
        Step::FromHost => json!({ "step": "from-host" }),
        Step::Reply(entry) => json!({ "step": "reply", "conntrack": entry.to_string() }),
        Step::Related(entry) => json!({ "step": "related", "conntrack": entry.to_string() }),
        Step::Unjudged(why) => json!({ "step": "unjudged", "why": unjudged_text(*why) }),
        Step::Frontend(frontend) => json!({
            "step": "frontend", "frontend": dump::frontend_text(frontend), "type": frontend.service.kind(),
            "id": frontend.service.rev_nat_index,
        }),
        Step::Forward { node, sender } => json!({
            "step": "forward", "node": node.map(|node| node.to_string()), "source": sender_text(*sender),
        }),
        Step::Service { frontend, backend, kept } => json!({
            "step": "service", "frontend": dump::frontend_text(frontend),
            "type": frontend.service.kind(), "id": frontend.service.rev_nat_index, "backend": backend.socket().to_string(),
            "backends": frontend.backends.iter().map(|slot| slot.backend.map(|known| known.socket().to_string())).collect::<Vec<_>>(),
            "kept_by": kept.map(|entry| entry.to_string()),
        }),
        Step::Netfilter { rule, after, .. } => {
            json!({ "step": "netfilter", "rule": rule, "after": after.to_string() })
        }
        Step::Route { dev } => json!({ "step": "route", "dev": dev }),
        Step::Identity { address, identity, origin } => json!({
            "step": "identity", "address": address.to_string(), "identity": identity.0,
            "text": world.identity_text(*identity), "from": identity_origin(*origin),
        }),
        Step::Policy(step) => policy_step_value(step),
    }
}

/// A policy check as JSON.
pub fn policy_step_value(step: &PolicyStep) -> Value {
    let verdict = match step.decision.verdict {
        PolicyVerdict::Allow { proxy_port: 0 } => json!({ "verdict": "allow" }),
        PolicyVerdict::Allow { proxy_port } => json!({ "verdict": "redirect", "proxy_port": proxy_port }),
        PolicyVerdict::Drop(reason) => json!({ "verdict": "drop", "reason": reason.0 }),
    };
    json!({
        "step": "policy", "endpoint": step.endpoint.0, "map": step.map, "direction": step.query.direction.to_string(),
        "identity": step.query.identity.0, "protocol": step.query.protocol, "port": step.query.port,
        "decision": verdict, "match": step.decision.match_type.to_string(), "audited": step.audited,
        "entry": step.decision.entry.as_ref().map(|(key, entry)| json!({
            "key": key_value(key), "deny": entry.deny(), "packets": entry.counters.map(|counters| counters.packets),
            "bytes": entry.counters.map(|counters| counters.bytes),
        })),
        "loser": step.decision.loser.as_ref().map(|(key, _)| key_value(key)),
        "authenticated": step.authenticated.map(|authenticated| json!({
            "remote_identity": authenticated.key.remote_sec_label.0, "remote_node_id": authenticated.key.remote_node_id,
            "type": authenticated.key.auth_type,
            "until_unix_ns": authenticated.until.map(|until| until.unix_ns().to_string()),
        })),
    })
}
