//! Cilium on this node, and what of the node's network an answer rests on.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::Context as _;
use probe_model::world::World;

use super::{
    Check, Need,
    Topic::{Cilium, Node},
};
use crate::sources::{
    LiveOptions,
    assemble::assemble,
    classifiers::{self, Attachment, Classifier},
    hubble::{Hubble, ServerStatus},
    in_use, live, monitor, nft,
    raw::{RawMap, RawNode},
    rest,
    unusable::Unusable,
};

/// Pins without which no packet is judged, and those that every Cilium has; others come with its options.
const PINS: [(&str, Need); 6] = [
    ("cilium_lxc", Need::Everything),
    ("cilium_ipcache", Need::Everything),
    ("cilium_lb4_services_v2", Need::None),
    ("cilium_lb4_backends_v3", Need::None),
    ("cilium_ct4_global", Need::None),
    ("cilium_ct_any4_global", Need::None),
];
/// What to do about a map that is not understood.
const REPORT: &str = "report this line: plsprobe knows the layouts of Cilium 1.13 to 1.20";

pub(super) fn checks(options: &LiveOptions) -> Vec<Check> {
    let mut checks = match live::read(options) {
        Ok(live) => of_node(&live.node),
        Err(error) => {
            let next = "run plsprobe on a node with Cilium";
            vec![Check::failed(Cilium, "maps", &error, next).needed_for(Need::Everything)]
        }
    };
    checks.push(monitor_socket(&options.monitor_socket()));
    checks.push(hubble_socket(&options.hubble_socket()));
    checks
}

fn of_node(node: &RawNode) -> Vec<Check> {
    let world = assemble(node);
    let mut checks = maps(node, &world);
    checks.extend(agent(node));
    checks.push(attachment(node));
    checks.push(pod_interfaces(&world));
    checks.push(rules(node));
    checks
}

fn maps(node: &RawNode, world: &World) -> Vec<Check> {
    let mut checks: Vec<Check> = PINS
        .into_iter()
        .map(|(name, need)| match (pinned(name, node), world.missing(name)) {
            (Some((pin, map)), None) => Check::ok(Cilium, pin, shown(map)),
            (Some((_, map)), Some(missing)) => {
                let found = format!("{}; {}", shown(map), missing.why);
                Check::missing(Cilium, name, found, REPORT).needed_for(need)
            }
            (None, _) => unread(name, need, node),
        })
        .collect();
    checks.extend(policy_maps(node, world));
    let named = |name: &&String| {
        PINS.iter().any(|(pin, _)| pinned(pin, node).is_some_and(|(found, _)| found == **name))
            || name.starts_with("cilium_policy_")
    };
    let others = node.maps.iter().filter(|(name, _)| !named(name));
    // Who has to report an unknown layout sends this along: all that the maps say of themselves.
    if checks.iter().any(|check| check.next.as_deref() == Some(REPORT)) {
        checks.extend(others.map(|(name, map)| Check::ok(Cilium, name, shown(map))));
        checks.extend(node.programs.iter().map(|(id, program)| {
            let found = format!("`{}` uses maps {:?}", program.name, program.map_ids);
            Check::ok(Cilium, format!("program {id}"), found)
        }));
    } else {
        let found = format!("{}, of which trace and dump use some", others.count());
        checks.push(Check::ok(Cilium, "other pins", found));
    }
    checks
}

/// A map of this name; the ipcache's is another in Cilium 1.18 and later.
fn pinned<'n>(name: &'n str, node: &'n RawNode) -> Option<in_use::Pin<'n>> {
    match in_use::common_ipcache(node) {
        Some(Ok(pin)) if in_use::IPCACHE_PINS.contains(&name) => Some(pin),
        _ => Some((name, node.maps.get(name)?)),
    }
}

/// A map that could not be read, or is not there.
fn unread(name: &str, need: Need, node: &RawNode) -> Check {
    if let Some(missing) = node.missing.iter().find(|missing| missing.what == name) {
        let next = "answers lack what it holds";
        return match need {
            Need::None => Check::degraded(Cilium, name, &missing.why, next),
            need => Check::missing(Cilium, name, &missing.why, next).needed_for(need),
        };
    }
    let (found, next) = other_generation(name, &node.maps).map_or_else(
        || ("no such pin".to_owned(), "is the agent up, and is `--bpffs` the one it uses?"),
        |other| (format!("no such pin, but `{other}`"), REPORT),
    );
    Check::missing(Cilium, name, found, next).needed_for(need)
}

/// A pin of the same map in another version of Cilium: `cilium_ipcache_v2` for `cilium_ipcache`.
fn other_generation<'a>(name: &str, maps: &'a BTreeMap<String, RawMap>) -> Option<&'a str> {
    let stem = name.split("_v").next().unwrap_or(name);
    let versioned = |found: &&String| found.strip_prefix(stem).is_some_and(|rest| rest.starts_with("_v"));
    maps.keys().find(versioned).map(String::as_str)
}

/// One line for all that are understood, one for each that is not.
fn policy_maps(node: &RawNode, world: &World) -> Vec<Check> {
    let pins = || node.maps.iter().filter(|(name, _)| name.starts_with("cilium_policy_"));
    let mut checks = Vec::new();
    for (name, map) in pins() {
        if let Some(missing) = world.missing(name) {
            let found = format!("{}; {}", shown(map), missing.why);
            checks.push(Check::missing(Cilium, name, found, REPORT).needed_for(Need::Everything));
        }
    }
    let (mut entries, mut shapes) = (0, BTreeSet::new());
    for policy in world.policy.values() {
        let Some(RawMap { map_type, max_entries, .. }) = node.maps.get(&policy.name) else { continue };
        let layout = policy.map.layout();
        let (key_size, value_size) = (layout.key_size(), layout.value_size());
        entries += policy.map.len();
        shapes.insert(format!(
            "{map_type}, key {key_size}, value {value_size}, at most {max_entries}, as Cilium {} (lookup {})",
            layout.versions(),
            layout.group()
        ));
    }
    let understood = world.policy.len();
    let unused = pins().count().saturating_sub(understood + checks.len());
    let what = "cilium_policy_*";
    if understood > 0 {
        let shapes: Vec<String> = shapes.into_iter().collect();
        let rest = match unused {
            0 => String::new(),
            _ => format!("; {unused} more pins that no endpoint's program uses, as during an upgrade"),
        };
        let found = format!("{understood} maps, {}: {entries} entries{rest}", shapes.join(" or "));
        checks.push(Check::ok(Cilium, what, found));
    } else if checks.is_empty() {
        let next = "has the agent no endpoints on this node?";
        checks.push(Check::missing(Cilium, what, "no such pin", next).needed_for(Need::Everything));
    }
    checks
}

fn shown(map: &RawMap) -> String {
    let RawMap { id, map_type, key_size, value_size, max_entries, entries } = map;
    format!(
        "{map_type}, key {key_size}, value {value_size}, at most {max_entries}, id {id}: {} entries",
        entries.len()
    )
}

fn agent(node: &RawNode) -> Vec<Check> {
    let healthz = node.rest.get("healthz").map(|text| rest::version(text));
    let mut checks = match healthz {
        Some(Ok(version)) => {
            let version = version.unwrap_or_else(|| "of a version it does not say".to_owned());
            vec![Check::ok(Cilium, "agent", format!("answers, Cilium {version}"))]
        }
        Some(Err(error)) => {
            let next = "names and policies may be missing from answers";
            vec![Check::degraded(Cilium, "agent", format!("`/v1/healthz`: {error:#}"), next)]
        }
        None => Vec::new(),
    };
    let unanswered = node
        .missing
        .iter()
        .filter(|missing| missing.what == crate::sources::agent::SOCKET || missing.what.starts_with("/v1/"));
    checks.extend(unanswered.map(|missing| {
        let next = "answers lack names, labels and policies that only the agent knows";
        Check::degraded(Cilium, format!("agent {}", missing.what), &missing.why, next)
    }));
    checks
}

fn monitor_socket(path: &Path) -> Check {
    let what = "monitor socket";
    match UnixStream::connect(path) {
        Ok(_) => Check::ok(Cilium, what, format!("accepts at `{}`", path.display())),
        Err(error) => {
            let (found, _) = Unusable::parts(&monitor::refused(path, error));
            let next = "without kprobe and fentry, verdicts are judged from the maps alone; the agent's option is `enable-monitor`";
            Check::degraded(Cilium, what, found, next)
        }
    }
}

fn hubble_socket(path: &Path) -> Check {
    let what = "hubble socket";
    match hubble_status(path) {
        Ok(status) => {
            let ServerStatus { version, num_flows, max_flows, seen_flows } = status;
            let version = if version.is_empty() { "of a version it does not say" } else { version.as_str() };
            let found = format!(
                "answers, {version}: {num_flows} flows of at most {max_flows}, {seen_flows} seen so far"
            );
            Check::ok(Cilium, what, found)
        }
        Err(error) if error.downcast_ref::<Unusable>().is_some_and(|unusable| unusable.is_absent) => {
            Check::ok(Cilium, what, "not there, and not needed")
        }
        Err(error) => {
            let (found, own) = Unusable::parts(&error);
            let next = "only needed where neither a probe nor the monitor socket gives Cilium's verdicts";
            Check::degraded(Cilium, what, found, own.unwrap_or_else(|| next.to_owned()))
        }
    }
}

fn hubble_status(path: &Path) -> anyhow::Result<ServerStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start an event loop")?;
    runtime.block_on(async { Ok(Hubble::connect(path).await?.status().clone()) })
}

/// Where Cilium's programs are attached, on which ours depend for their order.
fn attachment(node: &RawNode) -> Check {
    let what = "attached programs";
    let links = node.network.as_ref().map(|network| network.links.as_slice()).unwrap_or_default();
    match classifiers::classifiers(links) {
        Ok(found) => attached(what, &found),
        Err(error) => {
            Check::failed(Cilium, what, &error, "trace attaches beside them; is CAP_NET_ADMIN effective?")
        }
    }
}

fn attached(what: &str, found: &[Classifier]) -> Check {
    let ciliums: Vec<&Classifier> = found.iter().filter(|classifier| classifier.is_ciliums()).collect();
    if ciliums.is_empty() {
        let others = found.len();
        let next = "is this the node's network namespace (hostNetwork), is the agent up?";
        return Check::missing(Cilium, what, format!("none of Cilium's, {others} of others"), next)
            .needed_for(Need::Trace);
    }
    let devs: BTreeSet<&str> = ciliums.iter().map(|classifier| classifier.dev.as_str()).collect();
    let kinds: BTreeSet<Attachment> = ciliums.iter().map(|classifier| classifier.attachment).collect();
    let kinds: Vec<String> = kinds.iter().map(Attachment::to_string).collect();
    let devs: Vec<&str> = devs.into_iter().collect();
    Check::ok(
        Cilium,
        what,
        format!("{} of Cilium's by {} on {}", ciliums.len(), kinds.join(", "), devs.join(", ")),
    )
}

/// The host sides of the pods' veths tell whether this is the node's network namespace.
fn pod_interfaces(world: &World) -> Check {
    let what = "pod interfaces";
    let pods: BTreeSet<u32> =
        world.lxc.iter().flatten().map(|(_, info)| info.ifindex).filter(|ifindex| *ifindex > 0).collect();
    let here =
        pods.iter().filter(|ifindex| world.links.iter().flatten().any(|link| link.ifindex == **ifindex));
    let (here, all) = (here.count(), pods.len());
    let found = format!("{here} of {all} are in this network namespace");
    if here == all {
        return Check::ok(Node, what, found);
    }
    let next = "run plsprobe in the node's network namespace (hostNetwork, or `nsenter -t 1 -n`)";
    let check = Check::missing(Node, what, found, next);
    if here == 0 { check.needed_for(Need::Trace) } else { check }
}

fn rules(node: &RawNode) -> Check {
    let what = "netfilter rules";
    let is_about_rules =
        |what: &str| what.contains("iptables") || what.contains("netfilter") || what.contains("nftables");
    let missing: Vec<String> = node
        .missing
        .iter()
        .filter(|missing| is_about_rules(&missing.what))
        .map(ToString::to_string)
        .collect();
    let read = node.iptables_save.as_deref().unwrap_or_default();
    let by_iptables = read.lines().filter(|line| line.starts_with("-A ")).count();
    let by_nft = node.nft_ruleset.as_ref().map(|json| nft::ruleset(json, node.iptables_save.as_deref()));
    let found = match by_nft {
        Some(Ok((rules, _))) => {
            format!("{by_iptables} read by iptables-save, {} by nft", rules.rule_count())
        }
        _ => format!("{by_iptables} read by iptables-save"),
    };
    if missing.is_empty() {
        return Check::ok(Node, what, found);
    }
    let next = "answers in which these may decide are inconclusive, or lack them";
    Check::degraded(Node, what, format!("{found}, not {}", missing.join(", ")), next)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use probe_model::cilium::Direction;
    use probe_model::cilium::entries::Entries;
    use probe_model::cilium::ipcache::{IpcacheLayout, RemoteEndpointInfo};

    use super::*;
    use crate::doctor::Status;
    use crate::sources::folder;

    /// A recorded node, as if it were read live.
    fn recorded(change: impl FnOnce(&mut RawNode)) -> Vec<Check> {
        let folder = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
        let mut node = folder::read(&folder).unwrap();
        change(&mut node);
        let world = assemble(&node);
        let mut checks = maps(&node, &world);
        checks.extend(agent(&node));
        checks.push(rules(&node));
        checks
    }

    #[track_caller]
    fn find<'a>(checks: &'a [Check], what: &str) -> &'a Check {
        checks.iter().find(|check| check.what == what).unwrap_or_else(|| panic!("no {what} in {checks:#?}"))
    }

    #[test]
    fn a_recorded_node_is_understood() {
        let checks = recorded(|_| {});
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:#?}");
        let policy = find(&checks, "cilium_policy_*");
        assert!(
            policy.found.starts_with(
                "3 maps, lpm_trie, key 12, value 24, at most 16384, as Cilium 1.14.0–1.16.3 (lookup B): "
            ),
            "{policy:?}"
        );
        assert!(find(&checks, "agent").found.starts_with("answers, Cilium 1.14"), "{checks:#?}");
    }

    #[test]
    fn maps_of_another_cilium() {
        let checks = recorded(|node| {
            let maps = &mut node.maps;
            let ipcache = maps.remove("cilium_ipcache").unwrap();
            maps.insert("cilium_ipcache_v3".to_owned(), RawMap { value_size: 32, ..ipcache });
            let lxc = maps.get_mut("cilium_lxc").unwrap();
            let shorter = lxc.entries.iter().map(|(key, value)| (key, &value[..47]));
            lxc.entries = Entries::collect(shorter).unwrap();
            let name = maps.keys().find(|name| name.starts_with("cilium_policy_")).unwrap().clone();
            maps.get_mut(&name).unwrap().value_size = 16;
        });
        let ipcache = find(&checks, "cilium_ipcache");
        assert_eq!(
            (ipcache.status, ipcache.found.as_str()),
            (Status::Missing, "no such pin, but `cilium_ipcache_v3`")
        );
        assert!(ipcache.blocks(Need::Everything));
        assert!(find(&checks, "cilium_lxc").blocks(Need::Everything));
        let policy = checks.iter().find(|check| check.found.contains("value 16")).unwrap();
        assert!(policy.what.starts_with("cilium_policy_") && policy.blocks(Need::Everything), "{policy:?}");
        assert!(find(&checks, "cilium_policy_*").found.starts_with("2 maps"));
        // All of it, for a bug report.
        assert!(find(&checks, "cilium_auth_map").found.starts_with("hash, key 12, value 8, at most "));
    }

    #[test]
    fn the_ipcache_of_a_later_cilium() {
        let checks = recorded(|node| {
            let ipcache = node.maps.remove("cilium_ipcache").unwrap();
            let later = ipcache.entries.iter().map(|(key, value)| {
                let info = RemoteEndpointInfo::decode(value).unwrap();
                (key, info.encode(IpcacheLayout::TunnelAddress))
            });
            let entries = Entries::collect(later).unwrap();
            let later = RawMap { value_size: 24, entries, ..ipcache };
            node.maps.insert("cilium_ipcache_v2".to_owned(), later);
        });
        let ipcache = find(&checks, "cilium_ipcache_v2");
        assert_eq!(ipcache.status, Status::Ok, "{ipcache:?}");
        assert!(checks.iter().all(|check| check.what != "cilium_ipcache"), "{checks:#?}");
    }

    #[test]
    fn no_endpoints() {
        let checks = recorded(|node| node.maps.retain(|name, _| !name.starts_with("cilium_policy_")));
        assert!(find(&checks, "cilium_policy_*").blocks(Need::Everything));
    }

    #[test]
    fn an_agent_that_is_silent() {
        let checks = recorded(|node| {
            node.rest.clear();
            let missing = |what: &str, why: &str| crate::sources::raw::Missing {
                what: what.to_owned(),
                why: why.to_owned(),
            };
            node.missing.push(missing("cilium.sock", "nobody listens"));
        });
        let agent = find(&checks, "agent cilium.sock");
        assert_eq!((agent.status, agent.found.as_str()), (Status::Degraded, "nobody listens"));
    }

    #[test]
    fn sockets_that_are_not_there() {
        let path = PathBuf::from("/nonexistent/monitor1_2.sock");
        let check = monitor_socket(&path);
        assert_eq!(
            (check.status, check.found.as_str()),
            (Status::Degraded, "no socket at `/nonexistent/monitor1_2.sock`")
        );
        let hubble = hubble_socket(&path);
        assert_eq!((hubble.status, hubble.found.as_str()), (Status::Ok, "not there, and not needed"));
        let folder = tempfile::tempdir().unwrap();
        let dead = folder.path().join("hubble.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let hubble = hubble_socket(&dead);
        assert!(hubble.status == Status::Degraded && hubble.found.starts_with("nobody listens on `"));
    }

    #[test]
    fn attachments() {
        let classifier = |dev: &str, attachment, name: &str| Classifier {
            dev: dev.to_owned(),
            direction: Direction::Ingress,
            attachment,
            name: name.to_owned(),
            program: 1,
        };
        let tc = Attachment::Tc { priority: 1, handle: 1 };
        let found = [
            classifier("eth0", tc, "cil_from_netdev-eth0"),
            classifier("eth0", tc, "plsprobe_uplink_in"),
            classifier("lxc1", tc, "cil_from_container-lxc1"),
        ];
        assert_eq!(attached("x", &found).found, "2 of Cilium's by tc prio 1 handle 0x1 on eth0, lxc1");
        let none = attached("x", &found[1..2]);
        assert_eq!((none.found.as_str(), none.blocks(Need::Trace)), ("none of Cilium's, 1 of others", true));
        let tcx = [classifier("eth0", Attachment::Tcx, "cil_from_netdev")];
        assert_eq!(attached("x", &tcx).found, "1 of Cilium's by tcx on eth0");
    }
}
