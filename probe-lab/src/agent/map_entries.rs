//! The entries that the agent would have written into Cilium's pinned maps, as the kernel stores them.
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use probe_model::cilium::EndpointId;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbBackend, LbKey, LbReverseNat, LbService};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey, Mac};

use super::realize::{LAYOUT, Realized};
use crate::addresses::{
    APP_CLUSTER_IP, APP_POD, ILB, NGINX_CLUSTER_IP, NGINX_POD, NODE, NODE_PORT, Pod, SERVICE_PORT,
};
use crate::lab::Shape;
use crate::standin::{Entries, HOST_ENDPOINT_ID, MapContents, policy_map};

/// A service as the agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its number: `rev_nat_index` in the maps, `id` in the REST answer.
    pub id: u16,
    /// The frontend's address; 0.0.0.0 for a `NodePort` on every address.
    pub address: Ipv4Addr,
    /// The frontend's port.
    pub port: u16,
    /// `ClusterIP`, `LoadBalancer` or `NodePort`.
    pub kind: &'static str,
    /// Whether packets from outside may use it.
    pub routable: bool,
    /// The pod behind it.
    pub backend: Pod,
}

impl Service {
    /// The number of its backend in `cilium_lb4_backends_v3`.
    pub fn backend_id(&self) -> u32 {
        if self.backend == APP_POD { 1 } else { 2 }
    }

    fn flags(&self) -> u8 {
        let kind = match self.kind {
            "LoadBalancer" => LbService::LOADBALANCER,
            "NodePort" => LbService::NODEPORT,
            _ => 0,
        };
        kind | if self.routable { LbService::ROUTABLE } else { 0 }
    }
}

/// The services that Cilium handles; with kube-proxy in front, only those of type `ClusterIP`.
pub fn services(shape: Shape) -> Vec<Service> {
    let of =
        |id, address, port, kind, routable, backend| Service { id, address, port, kind, routable, backend };
    let all = vec![
        of(1, APP_CLUSTER_IP, SERVICE_PORT, "ClusterIP", false, APP_POD),
        of(2, ILB, SERVICE_PORT, "LoadBalancer", true, APP_POD),
        of(3, NODE, NODE_PORT, "NodePort", true, APP_POD),
        of(4, Ipv4Addr::UNSPECIFIED, NODE_PORT, "NodePort", false, APP_POD),
        of(5, NGINX_CLUSTER_IP, SERVICE_PORT, "ClusterIP", false, NGINX_POD),
    ];
    match shape {
        Shape::Aks | Shape::Kpr => all,
        Shape::KubeProxy => all.into_iter().filter(|service| service.kind == "ClusterIP").collect(),
    }
}

/// The prefixes of the ipcache and their identities.
pub fn ipcache(realized: &Realized, router: Ipv4Addr) -> Vec<(Ipv4Net, Identity)> {
    let mut prefixes = vec![
        (Ipv4Net::from(NODE), Identity::HOST),
        (Ipv4Net::from(router), Identity::HOST),
        (Ipv4Net::default(), Identity::WORLD),
    ];
    prefixes.extend([APP_POD, NGINX_POD].map(|pod| (Ipv4Net::from(pod.address), Identity(pod.identity))));
    prefixes.extend_from_slice(&realized.cidr_identities);
    prefixes
}

/// Everything the agent would have written.
///
/// # Errors
///
/// A pod's MAC is none.
pub fn map_entries(app: &Realized, shape: Shape, router: Ipv4Addr) -> Result<MapContents> {
    let ipcache = ipcache(app, router).into_iter().map(ipcache_entry).collect();
    let mut maps = vec![("cilium_lxc".to_owned(), lxc(router)?), ("cilium_ipcache".to_owned(), ipcache)];
    let open = Realized::new(None)?;
    maps.extend(
        [(APP_POD, app), (NGINX_POD, &open)]
            .map(|(pod, realized)| (policy_map(pod.endpoint_id), policy_entries(realized))),
    );
    // Nothing is enforced at the host, and being the host earns no entry there.
    let host = Realized::new(None)?.without_host();
    maps.push((policy_map(HOST_ENDPOINT_ID), policy_entries(&host)));
    maps.extend(load_balancer(&services(shape)));
    Ok(maps.into_iter().collect())
}

/// The entries of an endpoint's policy map.
pub fn policy_entries(realized: &Realized) -> Entries {
    realized.entries.iter().map(|(key, entry)| (key.encode(LAYOUT), entry.encode(LAYOUT))).collect()
}

fn ipcache_entry((prefix, sec_identity): (Ipv4Net, Identity)) -> (Vec<u8>, Vec<u8>) {
    let key = IpcacheKey { prefix: prefix.into(), cluster_id: 0 };
    let info = RemoteEndpointInfo { sec_identity, ..RemoteEndpointInfo::default() };
    let layout = IpcacheLayout::ClusterByte;
    (key.encode(layout).into(), info.encode(layout))
}

fn lxc(router: Ipv4Addr) -> Result<Entries> {
    let mut entries = Entries::new();
    for pod in [APP_POD, NGINX_POD] {
        let info = EndpointInfo {
            ifindex: pod.host_ifindex,
            lxc_id: EndpointId(pod.endpoint_id),
            mac: mac(pod.mac)?,
            node_mac: mac(pod.host_mac)?,
            sec_id: Identity(pod.identity),
            ..EndpointInfo::default()
        };
        entries.push((EndpointKey::new(pod.address.into()).encode().into(), info.encode().into()));
    }
    let host = EndpointInfo { flags: EndpointInfo::HOST, ..EndpointInfo::default() };
    for address in [NODE, router] {
        let key = EndpointKey::new(address.into());
        entries.push((key.encode().into(), host.encode().into()));
    }
    Ok(entries)
}

fn load_balancer(services: &[Service]) -> [(String, Entries); 3] {
    let (mut frontends, mut backends, mut reverse_nat) = (Entries::new(), Entries::new(), Entries::new());
    for service in services {
        let address = service.address.into();
        let key = LbKey { address, dport: service.port, backend_slot: 0, proto: 0, scope: 0 };
        let (rev_nat_index, flags) = (service.id, service.flags());
        let frontend = LbService { count: 1, rev_nat_index, flags, ..LbService::default() };
        let slot = LbService { backend_id: service.backend_id(), count: 0, flags: 0, ..frontend };
        frontends.push((key.encode(), frontend.encode().into()));
        frontends.push((LbKey { backend_slot: 1, ..key }.encode(), slot.encode().into()));
        let target = LbReverseNat { address, port: service.port };
        reverse_nat.push((service.id.to_be_bytes().into(), target.encode()));
        let address = service.backend.address.into();
        let backend = LbBackend { address, port: SERVICE_PORT, proto: 0, flags: 0, cluster_id: 0, zone: 0 };
        let backend = (service.backend_id().to_le_bytes().into(), backend.encode());
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    [("services_v2", frontends), ("backends_v3", backends), ("reverse_nat", reverse_nat)]
        .map(|(name, entries)| (format!("cilium_lb4_{name}"), entries))
}

/// Parses `46:b6:6f:2e:11:8f`.
pub(crate) fn mac(text: &str) -> Result<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts
            .next()
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .with_context(|| format!("`{text}` is no MAC address"))?;
    }
    Ok(Mac(mac))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::addresses::ROUTER;
    use crate::dump::map_dump;
    use crate::scenario::Scenario;

    /// Every map but the policy maps (which `realize` checks) equals the recorded one but for the number of the
    /// `NodePort`.
    #[test]
    fn entries_equal_the_recorded_agents() {
        let none = Scenario::named("none").unwrap();
        let realized = Realized::new(none.policy.as_ref()).unwrap();
        let maps = map_entries(&realized, Shape::Kpr, ROUTER).unwrap();
        let recorded = fixtures::recording("cilium-1.14").join("none/maps");
        for name in [
            "cilium_lxc",
            "cilium_ipcache",
            "cilium_lb4_services_v2",
            "cilium_lb4_backends_v3",
            "cilium_lb4_reverse_nat",
        ] {
            let ours: BTreeSet<_> = maps.get(name).unwrap().iter().cloned().collect();
            let theirs = map_dump(&recorded.join(format!("{name}.json")));
            let theirs: BTreeSet<_> =
                theirs.into_iter().map(|(key, value)| (renumber(key), renumber(value))).collect();
            assert_eq!(ours, theirs, "{name}");
        }
    }

    #[test]
    fn the_hosts_policy_map_equals_the_recorded_agents() {
        let maps = map_entries(&Realized::new(None).unwrap(), Shape::Kpr, ROUTER).unwrap();
        let dump = fixtures::recording("cilium-1.14").join("none/maps/cilium_policy_00512.json");
        let ours: BTreeSet<_> = maps.get("cilium_policy_00512").unwrap().iter().cloned().collect();
        assert_eq!(ours, map_dump(&dump).into_iter().collect());
    }

    /// 30080, the recorded `NodePort`, as the lab's own.
    fn renumber(mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(at) = bytes.windows(2).position(|pair| pair == 30080_u16.to_be_bytes()) {
            bytes[at..at + 2].copy_from_slice(&NODE_PORT.to_be_bytes());
        }
        bytes
    }
}
