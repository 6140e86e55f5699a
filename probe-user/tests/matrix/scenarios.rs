//! One thing spoilt at a time, and a neighbour that only looks alike.

use std::net::{IpAddr, Ipv4Addr};

use probe_model::cilium::lb::{LbBackend, LbKey, LbMaps, LbService, LbSourceRange, LoadBalancer, Slot};
use probe_model::cilium::policy::{PolicyEntry, PolicyMap};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::Code;
use probe_model::intent::object::{Options, read_agent_rules};
use probe_model::netfilter::Ruleset;
use probe_model::world::kubernetes::{
    Node, PolicyObject, PolicyOrigin, PortRef, Service, ServiceEvent, TrafficPolicy,
};
use probe_model::world::private_link::{
    AzureLoadBalancer, ConnectionState, PrivateLinkService, SecurityGroup, SecurityRule,
};
use probe_model::world::{Forwarding, RoutingMode, World};

use crate::base::{
    APP, FRONTEND, NAT_IPS, NODE, NODE_PORT, POD, SIBLING_ID, connection, net, pod, policy, private_link,
    recorded, slice, working,
};

/// A cause, a cluster that has it, and one that only looks so.
pub(crate) struct Scenario {
    /// The cause.
    pub(crate) code: Code,
    /// What is wrong.
    pub(crate) shows: &'static str,
    /// The cluster that has it.
    pub(crate) spoilt: fn() -> World,
    /// What the other has instead, and the other.
    pub(crate) neighbour: (&'static str, fn() -> World),
}

fn good() -> World {
    working("cilium-1.14", "cidr-pls8-80", &NAT_IPS[..1])
}

/// The working cluster with a change.
fn with(change: impl FnOnce(&mut World)) -> World {
    let mut world = good();
    change(&mut world);
    world
}

fn service(world: &mut World) -> &mut Service {
    &mut world.kubernetes.services.as_mut().expect("services")[0]
}

fn link(world: &mut World) -> &mut PrivateLinkService {
    &mut world.private_link.services.as_mut().expect("Private Link services")[0]
}

fn balancer(world: &mut World) -> &mut AzureLoadBalancer {
    &mut world.private_link.load_balancers.as_mut().expect("load balancers")[0]
}

fn annotate(world: &mut World, key: &str, value: &str) {
    let key = format!("service.beta.kubernetes.io/{key}");
    service(world).annotations.insert(key, value.to_owned());
}

/// The service map with other flags and backends of the frontend.
fn frontend(world: &mut World, change: impl Fn(&LbKey, &mut LbService)) {
    let mut maps = maps(world);
    for (key, service) in maps.services.iter_mut().filter(|(key, _)| key.address == IpAddr::from(FRONTEND)) {
        change(key, service);
    }
    world.lb = Some(LoadBalancer::new(maps));
}

/// The service map as it was read.
fn maps(world: &World) -> LbMaps {
    let lb = world.lb.as_ref().expect("services");
    let id_of = |slot: &Slot| {
        let socket = slot.backend.map(|backend| backend.socket());
        lb.backends().find(|(_, known)| Some(known.socket()) == socket).map_or(0, |(id, _)| id)
    };
    let services = lb.frontends().flat_map(|frontend| {
        let slots = frontend.backends.iter().enumerate().map(|(at, slot)| {
            let key = LbKey { backend_slot: at as u16 + 1, ..frontend.key };
            (key, LbService { backend_id: id_of(slot), count: 0, ..frontend.service })
        });
        std::iter::once((frontend.key, frontend.service)).chain(slots).collect::<Vec<_>>()
    });
    let backends = lb.backends().map(|(id, backend)| (id, *backend)).collect();
    LbMaps { services: services.collect(), backends: Some(backends), source_ranges: None }
}

/// The backend at this place is on another node.
fn move_away(world: &mut World, is_second: bool) {
    const AWAY: u32 = 900;
    let mut known = maps(world);
    let address = Ipv4Addr::new(10, 0, 2, 9).into();
    let backends = known.backends.as_mut().expect("backends");
    let app = backends.iter().find(|(_, own)| own.address == IpAddr::from(APP)).expect("the app").1;
    backends.push((AWAY, LbBackend { address, ..app }));
    let mut added = Vec::new();
    for (key, value) in known.services.iter_mut().filter(|(key, _)| key.address == IpAddr::from(FRONTEND)) {
        match (key.backend_slot, is_second) {
            (0, true) => {
                value.count = 2;
                let slot = LbKey { backend_slot: 2, ..*key };
                added.push((slot, LbService { backend_id: AWAY, count: 0, ..*value }));
            }
            (1, false) => value.backend_id = AWAY,
            _ => {}
        }
    }
    known.services.extend(added);
    world.lb = Some(LoadBalancer::new(known));
    world.config.forwarding = Some(Forwarding::Snat);
    service(world).external_traffic_policy = Some(TrafficPolicy::Cluster);
    // Without a node port, the probe is another scenario.
    service(world).ports[0].node_port = None;
}

/// kube-proxy with `externalTrafficPolicy: Cluster`, and a rule that names the NAT subnet.
fn kube_proxy_cluster() -> World {
    let mut world = working("cilium-1.14-tunnel-kubeproxy", "cidr-subnet-80", &NAT_IPS[..1]);
    let cluster = Ipv4Addr::new(10, 224, 0, 6).into();
    service(&mut world).ingress = vec![cluster];
    service(&mut world).external_traffic_policy = Some(TrafficPolicy::Cluster);
    service(&mut world).ports[0].node_port = None;
    link(&mut world).frontends[0].address = Some(cluster);
    balancer(&mut world).frontends[0].address = Some(cluster);
    world
}

fn iptables() -> String {
    let all = fixtures::scenarios("cilium-1.14-tunnel-kubeproxy");
    let node = all[0].path.parent().expect("a folder").join("node/iptables-save.txt");
    std::fs::read_to_string(node).expect("the recorded rules")
}

/// The masquerading chain of another owner, in place of kube-proxy's.
fn masquerade_by(world: &mut World, chain: &str) {
    let text = iptables().replace("KUBE-POSTROUTING", chain);
    world.netfilter = Some(Ruleset::parse(&text).expect("rules"));
}

/// The recorded rules with one more before the others of FORWARD in the filter table.
fn filter(rule: &str) -> Ruleset {
    let text = iptables();
    let (before, after) = text.split_once("*filter").expect("a filter table");
    let first = after.replacen("\n-A FORWARD", &format!("\n{rule}\n-A FORWARD"), 1);
    let text = format!("{before}*filter{first}");
    Ruleset::parse(&text).expect("rules")
}

/// The service's backends listen on another port than the service.
fn target_port(world: &mut World, port: u16) {
    let mut known = maps(world);
    for (_, backend) in known.backends.as_mut().expect("backends") {
        backend.port = port;
    }
    world.lb = Some(LoadBalancer::new(known));
    service(world).ports[0].target_port = PortRef::Number(port);
}

/// The service takes only this source.
fn source_range(world: &mut World, prefix: &str) {
    let mut known = maps(world);
    let mut id = 0;
    for (_, value) in known.services.iter_mut().filter(|(key, _)| key.address == IpAddr::from(FRONTEND)) {
        value.flags |= LbService::SOURCE_RANGE;
        id = value.rev_nat_index;
    }
    known.source_ranges = Some(vec![LbSourceRange { rev_nat_id: id, prefix: net(prefix) }]);
    world.lb = Some(LoadBalancer::new(known));
    service(world).source_ranges = vec![net(prefix)];
}

/// The agent's one rule for the app: these sources (`fromCIDRSet`), this port.
fn rules(world: &mut World, cidrs: &str, port: &str) {
    agent_rule(world, cidrs, port, "[]");
}

/// The same on port 80, and a deny of these sources.
pub(crate) fn rules_with(world: &mut World, cidrs: &str, denied: &str) {
    agent_rule(
        world,
        cidrs,
        "80",
        &format!(r#"[{{"fromCIDRSet":{denied}}}]"#).replace(r#"[{"fromCIDRSet":[]}]"#, "[]"),
    );
}

fn agent_rule(world: &mut World, cidrs: &str, port: &str, denied: &str) {
    let rule = format!(
        r#"{{"endpointSelector":{{"matchLabels":{{"k8s:app":"pls-app","k8s:io.kubernetes.pod.namespace":"default"}}}},
            "ingress":[{{"fromCIDRSet":{cidrs},"toPorts":[{{"ports":[{{"port":"{port}","protocol":"TCP"}}]}}]}}],
            "ingressDeny":{denied},
            "labels":[{{"key":"io.cilium.k8s.policy.derived-from","value":"NetworkPolicy","source":"k8s"}},
                {{"key":"io.cilium.k8s.policy.name","value":"allow-pls-nat","source":"k8s"}},
                {{"key":"io.cilium.k8s.policy.namespace","value":"default","source":"k8s"}}]}}"#
    );
    let rule = serde_json::from_str(&rule).expect("a rule");
    world.rules = Some(read_agent_rules(&[rule], &Options::default()));
}

fn rule_port(world: &mut World, port: &str) {
    rules(world, r#"[{"cidr":"10.224.0.8/32"}]"#, port);
}

/// The policy as Kubernetes has it, with these ports.
fn ports(port: &str) -> PolicyObject {
    let spec = format!(
        r#"{{"podSelector":{{"matchLabels":{{"app":"pls-app"}}}},"policyTypes":["Ingress"],"ingress":[{{"from":[{{"ipBlock":{{"cidr":"10.224.0.8/32"}}}}],"ports":[{{"protocol":"TCP","port":{port}}}]}}]}}"#
    );
    policy("allow-pls-nat", &spec)
}

fn app(world: &World) -> EndpointId {
    let own = world.endpoints.values().find(|own| own.addresses.contains(&APP.into()));
    own.expect("the app").id
}

fn app_map(world: &World) -> &PolicyMap {
    &world.policy[&app(world)].map
}

/// Ingress as the one has it, egress as the other.
fn both_directions(ingress: &World, egress: &World) -> PolicyMap {
    let of = |world, direction| {
        app_map(world).iter().filter(move |(key, _)| key.direction == direction).collect::<Vec<_>>()
    };
    let all = [of(ingress, Direction::Ingress), of(egress, Direction::Egress)].concat();
    PolicyMap::new(app_map(ingress).layout(), all)
}

/// Every entry of the app's map hands over to this port of Cilium's proxy.
fn redirect(world: &mut World, proxy_port: u16) {
    let map = app_map(world);
    let entries = map.iter().map(|(key, entry)| (key, PolicyEntry { proxy_port, ..entry }));
    let redirected = PolicyMap::new(map.layout(), entries.collect::<Vec<_>>());
    let id = app(world);
    world.policy.get_mut(&id).expect("the app's map").map = redirected;
}

/// The cluster's DNS service.
fn dns() -> Service {
    Service {
        namespace: "kube-system".to_owned(),
        name: "kube-dns".to_owned(),
        kind: "ClusterIP".to_owned(),
        cluster_ips: vec![Ipv4Addr::new(10, 0, 167, 10).into()],
        ..Service::default()
    }
}

fn security_rule(name: &str, priority: u32, allows: bool, source: &str) -> SecurityRule {
    SecurityRule {
        name: name.to_owned(),
        priority,
        is_inbound: true,
        allows,
        protocol: "*".to_owned(),
        sources: vec![source.to_owned()],
        destinations: vec!["*".to_owned()],
        destination_ports: vec!["*".to_owned()],
    }
}

fn guard(world: &mut World, rules: Vec<SecurityRule>) {
    let group = SecurityGroup { name: "aks-nsg".to_owned(), rules, ..SecurityGroup::default() };
    world.private_link.security_groups = Some(vec![group]);
}

fn node(pods: &str) -> Node {
    Node { name: "aks-nodepool1-1".to_owned(), pod_cidrs: vec![net(pods)], ..Node::default() }
}

/// Every cause that needs no traffic.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        code: Code::DefaultDeny,
        shows: "no rule admits anybody",
        spoilt: || working("cilium-1.14", "deny-all", &NAT_IPS[..1]),
        neighbour: ("the rule admits the one NAT IP", good),
    },
    Scenario {
        code: Code::WrongAddresses,
        shows: "the rule names the peered network, whose addresses Private Link hides",
        spoilt: || working("cilium-1.14", "cidr-peered-80", &NAT_IPS[..1]),
        neighbour: ("the rule names the NAT subnet", || {
            working("cilium-1.14", "cidr-subnet-80", &NAT_IPS[..1])
        }),
    },
    Scenario {
        code: Code::NewNatIp,
        shows: "a second NAT IP, and the rule names the first",
        spoilt: || working("cilium-1.14", "cidr-pls8-80", &NAT_IPS),
        neighbour: ("the rule names the NAT subnet", || working("cilium-1.14", "cidr-subnet-80", &NAT_IPS)),
    },
    Scenario {
        code: Code::PortNotTargetPort,
        shows: "the pod listens on 8080, and the rule names the service's port 80",
        spoilt: || with(|world| target_port(world, 8080)),
        neighbour: ("the pod listens on 80", good),
    },
    Scenario {
        code: Code::EndPortIgnored,
        shows: "the rule names ports 79 to 8080, and this Cilium reads the first one alone",
        spoilt: || {
            with(|world| {
                target_port(world, 8080);
                world.version = Some("1.14.9".to_owned());
                world.kubernetes.policies = vec![ports("79,\"endPort\":8080")].into();
                rule_port(world, "79");
            })
        },
        neighbour: ("the rule names the one port", || {
            with(|world| world.kubernetes.policies = vec![ports("80")].into())
        }),
    },
    Scenario {
        code: Code::NatIpExcepted,
        shows: "the rule takes the NAT IP out of its range",
        spoilt: || {
            let mut world = working("cilium-1.14", "deny-all", &NAT_IPS[..1]);
            rules(&mut world, r#"[{"cidr":"10.224.0.0/16","except":["10.224.0.8/32"]}]"#, "80");
            world
        },
        neighbour: ("another address is taken out", || {
            with(|world| rules(world, r#"[{"cidr":"10.224.0.0/16","except":["10.224.0.99/32"]}]"#, "80"))
        }),
    },
    Scenario {
        code: Code::L7OrAuth,
        shows: "the entry hands the connection to Cilium's proxy",
        spoilt: || with(|world| redirect(world, 10_001)),
        neighbour: ("it does not", || with(|world| redirect(world, 0))),
    },
    Scenario {
        code: Code::EgressBreaksApp,
        shows: "an egress policy without the cluster's DNS",
        spoilt: || {
            with(|world| {
                let egress_only = working("cilium-1.14", "egress-only", &NAT_IPS[..1]);
                let id = app(world);
                let both = both_directions(world, &egress_only);
                world.policy.get_mut(&id).expect("the app's map").map = both;
                let policy =
                    world.endpoints.get_mut(&id).and_then(|own| own.policy.as_mut()).expect("a policy");
                policy.egress_enforced = true;
                world.kubernetes.services.as_mut().expect("services").push(dns());
            })
        },
        neighbour: ("egress is not limited", || {
            with(|world| world.kubernetes.services.as_mut().expect("services").push(dns()))
        }),
    },
    Scenario {
        code: Code::NatIpAmongPods,
        shows: "the NAT IP lies in a node's pod range, and kube-proxy does Local",
        spoilt: || {
            let mut world = working("cilium-1.14-tunnel-kubeproxy", "cidr-subnet-80", &[]);
            let nat = net("10.224.0.8/32");
            world.private_link.declared.nat_ips = vec![nat];
            world.kubernetes.nodes.as_mut().expect("nodes").push(node("10.224.0.8/29"));
            world
        },
        neighbour: ("Cilium does kube-proxy's part", || {
            working("cilium-1.14", "cidr-subnet-80", &NAT_IPS[..1])
        }),
    },
    Scenario {
        code: Code::SourceRanges,
        shows: "loadBalancerSourceRanges names the consumer's network",
        spoilt: || with(|world| source_range(world, "10.0.0.0/24")),
        neighbour: ("loadBalancerSourceRanges names the NAT subnet", || {
            with(|world| source_range(world, "10.224.0.0/24"))
        }),
    },
    Scenario {
        code: Code::MasqueradeAgent,
        shows: "ip-masq-agent rewrites what comes in, and the rule names the NAT subnet",
        spoilt: || {
            let mut world = kube_proxy_cluster();
            masquerade_by(&mut world, "IP-MASQ-AGENT");
            world
        },
        neighbour: ("kube-proxy does", kube_proxy_cluster),
    },
    Scenario {
        code: Code::NodeFirewall,
        shows: "a rule of the node drops forwarded packets",
        spoilt: || {
            let mut world = working("cilium-1.14-tunnel-kubeproxy", "cidr-subnet-80", &NAT_IPS[..1]);
            world.netfilter = Some(filter("-A FORWARD -s 10.224.0.8/32 -j DROP"));
            world
        },
        neighbour: ("a rule drops another source", || {
            let mut world = working("cilium-1.14-tunnel-kubeproxy", "cidr-subnet-80", &NAT_IPS[..1]);
            world.netfilter = Some(filter("-A FORWARD -s 10.224.0.99/32 -j DROP"));
            world
        }),
    },
    Scenario {
        code: Code::HiddenByKubeProxy,
        shows: "kube-proxy rewrites the source, and the rule names the NAT subnet",
        spoilt: kube_proxy_cluster,
        neighbour: ("externalTrafficPolicy Local leaves it visible", || {
            working("cilium-1.14-tunnel-kubeproxy", "cidr-subnet-80", &NAT_IPS[..1])
        }),
    },
    Scenario {
        code: Code::RemoteAsWorld,
        shows: "the only pod is on another node, behind the tunnel",
        spoilt: || {
            with(|world| {
                move_away(world, false);
                world.config.routing = RoutingMode::Tunnel;
            })
        },
        neighbour: ("the pod is here", good),
    },
    Scenario {
        code: Code::RemoteAsNode,
        shows: "the only pod is on another node, reached without a tunnel",
        spoilt: || with(|world| move_away(world, false)),
        neighbour: ("the pod is here", good),
    },
    Scenario {
        code: Code::SomeNodesOnly,
        shows: "one pod is here, one on another node",
        spoilt: || with(|world| move_away(world, true)),
        neighbour: ("both are here", good),
    },
    Scenario {
        code: Code::ProbeDenied,
        shows: "pods answer the probe, and the rule admits the NAT IP alone",
        spoilt: || {
            with(|world| {
                service(world).external_traffic_policy = Some(TrafficPolicy::Cluster);
                balancer(world).probes[0].port = NODE_PORT;
            })
        },
        neighbour: ("the node answers the probe", good),
    },
    Scenario {
        code: Code::ProxyHeaderInSiblingProbes,
        shows: "another service of the load balancer has PROXY on",
        spoilt: || {
            with(|world| {
                let mut sibling = private_link("sibling", SIBLING_ID, &NAT_IPS[1..]);
                sibling.proxy_protocol = true;
                world.private_link.services.as_mut().expect("services").push(sibling);
                link(world).nat_ips = Some(vec![NAT_IPS[0].into()]);
            })
        },
        neighbour: ("both have it off", || {
            with(|world| {
                let sibling = private_link("sibling", SIBLING_ID, &NAT_IPS[1..]);
                world.private_link.services.as_mut().expect("services").push(sibling);
            })
        }),
    },
    Scenario {
        code: Code::ProxyHeaderInHealthCheck,
        shows: "PROXY is on, and the node answers the probe",
        spoilt: || with(|world| link(world).proxy_protocol = true),
        neighbour: ("PROXY is on, and a pod answers the probe", || {
            with(|world| {
                link(world).proxy_protocol = true;
                balancer(world).probes[0].port = 32001;
            })
        }),
    },
    Scenario {
        code: Code::NoLocalPod,
        shows: "the ready pod is on another node",
        spoilt: || {
            with(|world| {
                world.kubernetes.endpoint_slices = Some(
                    vec![slice(&[(APP, false, POD), (Ipv4Addr::new(10, 0, 2, 9), true, "pls-app-other")])]
                        .into(),
                );
            })
        },
        neighbour: ("one is ready here", || {
            with(|world| {
                world.kubernetes.endpoint_slices = Some(
                    vec![slice(&[(APP, true, POD), (Ipv4Addr::new(10, 0, 2, 9), false, "pls-app-other")])]
                        .into(),
                );
            })
        }),
    },
    Scenario {
        code: Code::ProbePath,
        shows: "appProtocol http makes it an HTTP probe of /",
        spoilt: || {
            let mut world = working("cilium-1.14", "none", &NAT_IPS[..1]);
            service(&mut world).external_traffic_policy = Some(TrafficPolicy::Cluster);
            service(&mut world).ports[0].app_protocol = Some("http".to_owned());
            world
        },
        neighbour: ("an annotation names the path", || {
            let mut world = working("cilium-1.14", "none", &NAT_IPS[..1]);
            service(&mut world).external_traffic_policy = Some(TrafficPolicy::Cluster);
            service(&mut world).ports[0].app_protocol = Some("http".to_owned());
            annotate(&mut world, "azure-load-balancer-health-probe-request-path", "/healthz");
            world
        }),
    },
    Scenario {
        code: Code::Ipv6Probe,
        shows: "a service with IPv6 whose pods answer the probe",
        spoilt: || {
            let mut world = working("cilium-1.14", "none", &NAT_IPS[..1]);
            service(&mut world).external_traffic_policy = Some(TrafficPolicy::Cluster);
            service(&mut world).ip_families.push("IPv6".to_owned());
            world
        },
        neighbour: ("a service with IPv6 whose node answers it", || {
            with(|world| service(world).ip_families.push("IPv6".to_owned()))
        }),
    },
    Scenario {
        code: Code::PublicFloatingIp,
        shows: "not internal, and floating IP is on",
        spoilt: || {
            with(|world| {
                service(world).annotations.remove("service.beta.kubernetes.io/azure-load-balancer-internal");
            })
        },
        neighbour: ("not internal, and floating IP is off", || {
            with(|world| {
                service(world).annotations.remove("service.beta.kubernetes.io/azure-load-balancer-internal");
                annotate(world, "azure-disable-load-balancer-floating-ip", "true");
            })
        }),
    },
    Scenario {
        code: Code::NotApproved,
        shows: "the consumer's connection is pending",
        spoilt: || {
            with(|world| link(world).connections.push(connection("consumer-2", ConnectionState::Pending)))
        },
        neighbour: ("Azure did not say", || {
            with(|world| link(world).connections.push(connection("consumer-2", ConnectionState::Unknown)))
        }),
    },
    Scenario {
        code: Code::NeverCreated,
        shows: "Azure has no such service, and the event says why",
        spoilt: || {
            with(|world| {
                world.private_link.services = Some(Vec::new());
                world.private_link.declared.nat_ips = vec![net("10.224.0.8/32")];
                world.kubernetes.events = Some(
                    vec![ServiceEvent {
                        namespace: "default".to_owned(),
                        service: "pls-app".to_owned(),
                        reason: "SyncLoadBalancerFailed".to_owned(),
                        message: "disablePLSNetworkPolicy: failed to get subnet".to_owned(),
                        ..ServiceEvent::default()
                    }]
                    .into(),
                );
            })
        },
        neighbour: ("Azure was not asked", || {
            with(|world| {
                world.private_link.services = None;
                world.private_link.declared.nat_ips = vec![net("10.224.0.8/32")];
            })
        }),
    },
    Scenario {
        code: Code::BackendPoolByIp,
        shows: "the pool lists addresses",
        spoilt: || with(|world| balancer(world).pools[0].by_address = vec![NODE.into()]),
        neighbour: ("another pool does, which the rule does not use", || {
            with(|world| {
                let mut other = balancer(world).pools[0].clone();
                other.id.0.push_str("-other");
                other.by_address = vec![NODE.into()];
                balancer(world).pools.push(other);
            })
        }),
    },
    Scenario {
        code: Code::SecurityGroup,
        shows: "a rule denies the load balancer's probe",
        spoilt: || {
            with(|world| {
                guard(world, vec![security_rule("deny-probe", 200, false, "AzureLoadBalancer")]);
            })
        },
        neighbour: ("an earlier rule allows what a later one denies", || {
            with(|world| {
                guard(
                    world,
                    vec![
                        security_rule("deny-all", 4000, false, "*"),
                        security_rule("allow-all", 300, true, "*"),
                    ],
                );
            })
        }),
    },
    Scenario {
        code: Code::EgressOnly,
        shows: "the only policy limits what the pod opens",
        spoilt: || working("cilium-1.14", "egress-only", &NAT_IPS[..1]),
        neighbour: ("no policy at all", || working("cilium-1.14", "none", &NAT_IPS[..1])),
    },
    Scenario {
        code: Code::PolicyReplaced,
        shows: "a file replaces the policy of the cluster",
        spoilt: || {
            with(|world| {
                let mut file = policy("allow-pls-nat", r#"{"podSelector":{},"policyTypes":["Ingress"]}"#);
                file.origin = PolicyOrigin::File { path: "deny.yaml".to_owned(), line: 1 };
                world.kubernetes.policies =
                    vec![policy("allow-pls-nat", r#"{"podSelector":{}}"#), file].into();
            })
        },
        neighbour: ("the file has the same object", || {
            with(|world| {
                let mut file = policy("allow-pls-nat", r#"{"podSelector":{}}"#);
                file.origin = PolicyOrigin::File { path: "allow.yaml".to_owned(), line: 1 };
                world.kubernetes.policies =
                    vec![policy("allow-pls-nat", r#"{"podSelector":{}}"#), file].into();
            })
        }),
    },
    Scenario {
        code: Code::TooWide,
        shows: "the rule admits the world",
        spoilt: || working("cilium-1.14", "world-80", &NAT_IPS[..1]),
        neighbour: ("the rule admits the NAT IP", good),
    },
    Scenario {
        code: Code::OutsidePolicy,
        shows: "the pod is on its node's network",
        spoilt: || {
            with(|world| {
                let mut own = pod();
                own.host_network = true;
                world.kubernetes.pods = Some(vec![own].into());
            })
        },
        neighbour: ("another pod is", || {
            with(|world| {
                let mut other = pod();
                other.host_network = true;
                "node-exporter-x".clone_into(&mut other.name);
                world.kubernetes.pods.as_mut().expect("pods").push(other);
            })
        }),
    },
    Scenario {
        code: Code::EnforcementOff,
        shows: "the agent is in audit mode",
        spoilt: || with(|world| world.config.audit_mode = true),
        neighbour: ("policy is enforced by default", || {
            with(|world| {
                let option = ("enable-policy".to_owned(), "default".to_owned());
                world.kubernetes.cilium_config = Some([option].into());
            })
        }),
    },
    Scenario {
        code: Code::ExplicitDeny,
        shows: "a deny rule names the NAT IP",
        spoilt: || working("cilium-1.14", "deny-cidr", &NAT_IPS[1..]),
        neighbour: ("the deny rule names the other NAT IP", || {
            working("cilium-1.14", "deny-cidr", &NAT_IPS[..1])
        }),
    },
    Scenario {
        code: Code::AddressOverlap,
        shows: "a node's pod range contains the cluster's services",
        spoilt: || with(|world| world.kubernetes.nodes.as_mut().expect("nodes").push(node("10.0.160.0/20"))),
        neighbour: ("a pod range of its own", || {
            with(|world| world.kubernetes.nodes.as_mut().expect("nodes").push(node("10.244.0.0/16")))
        }),
    },
    Scenario {
        code: Code::NoEndpoint,
        shows: "the service map has no backend",
        spoilt: || {
            with(|world| {
                frontend(world, |key, service| {
                    if key.backend_slot == 0 {
                        service.count = 0;
                    }
                });
            })
        },
        neighbour: ("it has one", good),
    },
    Scenario {
        code: Code::UnknownFrontend,
        shows: "Cilium's service map does not have the load balancer's address",
        spoilt: || {
            with(|world| {
                let mut known = maps(world);
                known.services.retain(|(key, _)| key.address != IpAddr::from(FRONTEND));
                world.lb = Some(LoadBalancer::new(known));
                let rules = recorded("cilium-1.14", "none").netfilter;
                world.netfilter = rules;
            })
        },
        neighbour: ("it has", good),
    },
    Scenario {
        code: Code::ClientIpAffinity,
        shows: "sessionAffinity ClientIP",
        spoilt: || with(|world| service(world).client_ip_affinity = true),
        neighbour: ("none", good),
    },
    Scenario {
        code: Code::GatewayHealthCheck,
        shows: "Cilium's gateway with externalTrafficPolicy Local",
        spoilt: || {
            with(|world| {
                "cilium-gateway-pls-app".clone_into(&mut service(world).name);
                let slices = world.kubernetes.endpoint_slices.as_mut().expect("slices");
                "cilium-gateway-pls-app".clone_into(&mut slices[0].service);
            })
        },
        neighbour: ("a service of another name", good),
    },
    Scenario {
        code: Code::AgentStale,
        shows: "the agent lacks a policy that Kubernetes has",
        spoilt: || {
            with(|world| {
                world.kubernetes.policies = vec![policy("newer", r#"{"podSelector":{}}"#)].into();
            })
        },
        neighbour: ("the agent has it", || {
            with(|world| {
                world.kubernetes.policies = vec![policy("allow-pls-nat", r#"{"podSelector":{}}"#)].into();
            })
        }),
    },
    Scenario {
        code: Code::OtherConsumer,
        shows: "two approved consumers",
        spoilt: || {
            with(|world| link(world).connections.push(connection("consumer-2", ConnectionState::Approved)))
        },
        neighbour: ("one", good),
    },
];
