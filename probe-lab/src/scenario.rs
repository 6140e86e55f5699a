//! The scenarios: what each shows, its policy, and what every client then sees. Data, in one place.
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::SystemTime;

use anyhow::{Result, bail};

use crate::addresses::{
    APP, CONSUMER, ILB, LB_PROBE, NAT_IPS, NGINX, NODE, NODE_PORT, PRIVATE_ENDPOINT, SERVICE_PORT, VM,
};
use crate::lab::Shape;
use crate::netns::Ns;
use crate::probe::ClientSaw::{self, Ok as Answer, Refused, Rejected, Timeout};
use crate::probe::{Header, Probe};
use crate::server::App;

/// One state of the world and what it looks like from every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub shows: &'static str,
    /// The shapes it makes sense in; the first is the default.
    pub shapes: &'static [Shape],
    /// The one policy object that selects `pls-app`.
    pub policy: Option<Policy>,
    /// The TCP ports on which `pls-app` listens.
    pub app_ports: &'static [u16],
    /// What `pls-app` makes of a PROXY header.
    pub app: App,
    /// Whether the Private Link service puts a PROXY header in front of connections, and so the load balancer in front of
    /// its probes.
    pub proxy: bool,
    /// What each of [`Client::ALL`] sees, in that order.
    sees: [ClientSaw; Client::ALL.len()],
}

/// A policy object in namespace `default` that selects `app=pls-app`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `NetworkPolicy` or `CiliumNetworkPolicy`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its UID.
    pub uid: &'static str,
    /// Allowed peers; `None` leaves ingress open, an empty list denies all.
    pub ingress: Option<&'static [Rule]>,
    /// Allowed peers; `None` leaves egress open, an empty list denies all.
    pub egress: Option<&'static [Rule]>,
    /// Denied peers (`ingressDeny`).
    pub ingress_deny: &'static [Rule],
}

/// One peer of a policy: a prefix, and one port or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The prefix.
    pub cidr: &'static str,
    /// A TCP port; `None` for every port of every protocol.
    pub tcp_port: Option<u16>,
}

/// Who sends, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// The consumer through the private endpoint, from the first NAT IP.
    ConsumerFirstNatIp,
    /// The consumer through the private endpoint, from the second NAT IP.
    ConsumerSecondNatIp,
    /// The peered virtual machine to the load balancer's frontend.
    PeeredVm,
    /// The load balancer's health probe to the `NodePort`.
    HealthProbe,
    /// The pod `my-nginx` to the pod `pls-app`.
    Nginx,
    /// The pod `pls-app` to the peered virtual machine.
    AppToVm,
    /// The pod `pls-app` to the first NAT IP.
    AppToNatIp,
}

/// Every shape.
const EVERY: &[Shape] = &[Shape::Aks, Shape::Kpr, Shape::KubeProxy];
/// Both managed shapes.
const CILIUM: &[Shape] = &[Shape::Aks, Shape::Kpr];
/// Where the recorded `pls-app` listens.
const APP_PORTS: &[u16] = &[80, 443, 8080, 8090];

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "none",
        shows: "no policy: everybody gets through",
        shapes: EVERY,
        policy: None,
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Answer; 7],
    },
    Scenario {
        name: "seed-egress-only",
        shows: "a policy with only an egress ipBlock: ingress stays open, egress is enforced",
        shapes: CILIUM,
        policy: Some(Policy {
            egress: Some(&[Rule::every_port("10.221.1.0/24")]),
            ..Policy::network("egress-peered", "6d1a6c60-2222-4222-8333-000000000001")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Answer, Answer, Answer, Answer, Answer, Answer, Timeout],
    },
    Scenario {
        name: "seed-deny",
        shows: "the article's deny policy: no ingress at all, egress only to the consumer's range",
        shapes: CILIUM,
        policy: Some(Policy {
            ingress: Some(&[]),
            egress: Some(&[Rule::every_port("10.0.0.0/24")]),
            ..Policy::network("deny-pls-app", "6d1a6c60-2222-4222-8333-000000000002")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Timeout; 7],
    },
    Scenario {
        name: "allow-peered",
        shows: "ingress from the peered VNet only: the private link's NAT IPs are not in it",
        shapes: CILIUM,
        policy: Some(Policy {
            ingress: Some(&[Rule::tcp("10.221.1.0/24", 80)]),
            ..Policy::network("allow-peered", "6d1a6c60-2222-4222-8333-000000000003")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Timeout, Timeout, Answer, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "allow-nat-ip",
        shows: "ingress from one of the two NAT IPs: every second consumer connection fails, and so do probes",
        shapes: CILIUM,
        policy: Some(Policy {
            ingress: Some(&[Rule::tcp("10.224.0.8/32", 80)]),
            ..Policy::network("allow-pls-nat", "6d1a6c60-2222-4222-8333-000000000004")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Answer, Timeout, Timeout, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "wrong-port",
        shows: "the right peers on a port that is not the pod's",
        shapes: CILIUM,
        policy: Some(Policy {
            ingress: Some(&[Rule::tcp("10.224.0.0/24", 8080)]),
            ..Policy::network("allow-pls-8080", "6d1a6c60-2222-4222-8333-000000000005")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Timeout, Timeout, Timeout, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "explicit-deny",
        shows: "the whole subnet allowed, one NAT IP denied by name",
        shapes: CILIUM,
        policy: Some(Policy {
            kind: "CiliumNetworkPolicy",
            ingress: Some(&[Rule::every_port("10.224.0.0/16")]),
            ingress_deny: &[Rule::every_port("10.224.0.9/32")],
            ..Policy::network("deny-pls9", "6d1a6c60-2222-4222-8333-000000000006")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Answer, Timeout, Timeout, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "not-listening",
        shows: "policy allows the NAT IPs, but nothing listens in the pod: a reset comes back",
        shapes: CILIUM,
        policy: Some(Policy {
            ingress: Some(&[Rule::tcp("10.224.0.0/24", 80)]),
            ..Policy::network("allow-pls-subnet", "6d1a6c60-2222-4222-8333-000000000007")
        }),
        app_ports: &[443, 8080, 8090],
        app: App::Http,
        proxy: false,
        sees: [Refused, Refused, Timeout, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "kube-proxy",
        shows: "kube-proxy masquerades: the pod sees the node, so a rule for a NAT IP matches nobody",
        shapes: &[Shape::KubeProxy],
        policy: Some(Policy {
            ingress: Some(&[Rule::tcp("10.224.0.8/32", 80)]),
            ..Policy::network("allow-pls-nat", "6d1a6c60-2222-4222-8333-000000000008")
        }),
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: false,
        sees: [Timeout, Timeout, Timeout, Timeout, Timeout, Answer, Answer],
    },
    Scenario {
        name: "proxy-parsed",
        shows: "Private Link sends a PROXY header, and the application takes it: everybody is answered",
        shapes: EVERY,
        policy: None,
        app_ports: APP_PORTS,
        app: App::TakesProxy,
        proxy: true,
        sees: [Answer; 7],
    },
    Scenario {
        name: "proxy-unparsed",
        shows: "Private Link sends a PROXY header, and the application takes it for a bad request: so fare probes, too",
        shapes: EVERY,
        policy: None,
        app_ports: APP_PORTS,
        app: App::Http,
        proxy: true,
        sees: [Rejected, Rejected, Answer, Rejected, Answer, Answer, Answer],
    },
    Scenario {
        name: "proxy-reset",
        shows: "the same with an application that resets what it does not understand",
        shapes: EVERY,
        policy: None,
        app_ports: APP_PORTS,
        app: App::HttpOrReset,
        proxy: true,
        sees: [Rejected, Rejected, Answer, Rejected, Answer, Answer, Answer],
    },
    Scenario {
        name: "proxy-demanded",
        shows: "the application demands a PROXY header, and nobody sends one: every connection is reset at its first byte",
        shapes: EVERY,
        policy: None,
        app_ports: APP_PORTS,
        app: App::DemandsProxy,
        proxy: false,
        sees: [Rejected, Rejected, Rejected, Rejected, Rejected, Answer, Answer],
    },
];

impl Scenario {
    /// The scenario called `name`.
    ///
    /// # Errors
    ///
    /// There is none; the message lists them all.
    pub fn named(name: &str) -> Result<&'static Self> {
        if let Some(found) = SCENARIOS.iter().find(|scenario| scenario.name == name) {
            return Ok(found);
        }
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("no scenario `{name}`, expected one of {}", names.join(", "));
    }

    /// Refuses a shape that the scenario makes no sense in.
    ///
    /// # Errors
    ///
    /// It makes none; the message lists those that do.
    pub fn check_shape(&self, shape: Shape) -> Result<()> {
        if self.shapes.contains(&shape) {
            return Ok(());
        }
        let shapes: Vec<_> = self.shapes.iter().map(Shape::to_string).collect();
        bail!("scenario `{}` makes no sense in shape `{shape}`, expected {}", self.name, shapes.join(" or "));
    }

    /// What `client` sends in this scenario: a consumer's and a probe's connection may begin with a PROXY header.
    pub fn probe(&self, client: Client) -> Probe {
        let header = match client {
            _ if !self.proxy => Header::None,
            Client::ConsumerFirstNatIp | Client::ConsumerSecondNatIp => Header::Consumer { split_at: None },
            Client::HealthProbe => Header::Probe,
            _ => Header::None,
        };
        client.probe().with_header(header)
    }

    /// What `client` sees.
    pub fn expected(&self, client: Client) -> ClientSaw {
        self.sees[client as usize]
    }
}

impl Policy {
    /// A `NetworkPolicy` that leaves both directions open.
    const fn network(name: &'static str, uid: &'static str) -> Self {
        Self { kind: "NetworkPolicy", name, uid, ingress: None, egress: None, ingress_deny: &[] }
    }
}

impl Rule {
    const fn tcp(cidr: &'static str, port: u16) -> Self {
        Self { cidr, tcp_port: Some(port) }
    }

    const fn every_port(cidr: &'static str) -> Self {
        Self { cidr, tcp_port: None }
    }
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ConsumerFirstNatIp,
        Self::ConsumerSecondNatIp,
        Self::PeeredVm,
        Self::HealthProbe,
        Self::Nginx,
        Self::AppToVm,
        Self::AppToNatIp,
    ];
    /// Those whose flows end at `pls-app`, which is what `plsprobe trace --dst pls-app` counts; it watches the health probe
    /// besides.
    pub const TO_APP: [Self; 4] =
        [Self::ConsumerFirstNatIp, Self::ConsumerSecondNatIp, Self::PeeredVm, Self::Nginx];

    /// What it sends, but for a PROXY header.
    pub fn probe(self) -> Probe {
        let consumer = |parity| {
            Probe::tcp(Ns::Consumer, CONSUMER, PRIVATE_ENDPOINT, SERVICE_PORT)
                .with_src_port(next_source_port(parity))
        };
        match self {
            // The private link of the lab picks the NAT IP by the parity of the source port.
            Self::ConsumerFirstNatIp => consumer(0),
            Self::ConsumerSecondNatIp => consumer(1),
            Self::PeeredVm => Probe::tcp(Ns::Vm, VM, ILB, SERVICE_PORT),
            Self::HealthProbe => Probe::tcp(Ns::Fabric, LB_PROBE, NODE, NODE_PORT),
            Self::Nginx => Probe::tcp(Ns::Nginx, NGINX, APP, SERVICE_PORT),
            Self::AppToVm => Probe::tcp(Ns::App, APP, VM, SERVICE_PORT),
            Self::AppToNatIp => Probe::tcp(Ns::App, APP, NAT_IPS[0], SERVICE_PORT),
        }
    }

    /// Where the provider's side sees it go: a consumer's private endpoint is the load balancer's frontend there.
    pub fn destination(self) -> SocketAddrV4 {
        match self {
            Self::ConsumerFirstNatIp | Self::ConsumerSecondNatIp => SocketAddrV4::new(ILB, SERVICE_PORT),
            _ => SocketAddrV4::new(self.probe().dst, self.probe().port),
        }
    }

    /// The source address that the provider's side sees before any NAT of the node's.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::ConsumerFirstNatIp => NAT_IPS[0],
            Self::ConsumerSecondNatIp => NAT_IPS[1],
            Self::PeeredVm => VM,
            Self::HealthProbe => LB_PROBE,
            Self::Nginx => NGINX,
            Self::AppToVm | Self::AppToNatIp => APP,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ConsumerFirstNatIp => "consumer through NAT IP 10.224.0.8",
            Self::ConsumerSecondNatIp => "consumer through NAT IP 10.224.0.9",
            Self::PeeredVm => "peered VM 10.221.1.4",
            Self::HealthProbe => "health probe 168.63.129.16",
            Self::Nginx => "pod my-nginx 10.0.1.124",
            Self::AppToVm => "pod pls-app, to 10.221.1.4",
            Self::AppToNatIp => "pod pls-app, to 10.224.0.8",
        })
    }
}

/// Ports that neither this process nor, most likely, an earlier one has used lately: a fresh connection each.
fn next_source_port(parity: u16) -> u16 {
    static PAIRS: AtomicU16 = AtomicU16::new(0);
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let pair = PAIRS.fetch_add(1, Ordering::Relaxed).wrapping_add(started.as_millis() as u16);
    20_000 + pair % 20_000 * 2 + parity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for scenario in SCENARIOS {
            assert_eq!(Scenario::named(scenario.name).unwrap(), scenario);
        }
        let err = Scenario::named("nome").unwrap_err().to_string();
        assert!(err.starts_with("no scenario `nome`, expected one of none, seed-egress-only, "), "{err}");
    }

    #[test]
    fn clients_are_in_the_order_of_their_table() {
        for (idx, client) in Client::ALL.into_iter().enumerate() {
            assert_eq!(client as usize, idx);
        }
    }

    #[test]
    fn source_ports_have_their_parity() {
        for parity in [0, 1] {
            assert_eq!(next_source_port(parity) % 2, parity);
        }
    }
}
