//! The addresses of the seed article's world: the contract that the stand-in, the scenarios and the recordings share.
use std::net::Ipv4Addr;

/// The node's address on the provider `VNet`.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 4);
/// MAC of the node's `eth0`.
pub const NODE_MAC: &str = "00:0d:3a:00:00:04";
/// First address of the provider `VNet`: Azure's default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 1);
/// MAC with which Azure's fabric answers for everything.
pub const FABRIC_MAC: &str = "12:34:56:78:9a:bc";
/// Frontend of the internal load balancer; floating IP, so the node sees it as the destination.
pub const ILB: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 7);
/// A second frontend, which the recordings with kube-proxy use for externalTrafficPolicy Cluster.
pub const ILB_SECOND: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 6);
/// NAT IPs of the Private Link Service, on the provider `VNet`.
pub const NAT_IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 224, 0, 8), Ipv4Addr::new(10, 224, 0, 9)];
/// MAC of the Private Link Service's provider side.
pub const PLS_MAC: &str = "00:0d:3a:00:00:08";
/// The consumer's private endpoint.
pub const PRIVATE_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
/// The consumer's client: inside the pod range of the provider, which is the point.
pub const CONSUMER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
/// The virtual machine in the peered `VNet`.
pub const VM: Ipv4Addr = Ipv4Addr::new(10, 221, 1, 4);
/// First address of the peered subnet: its gateway.
pub const VM_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 221, 1, 1);
/// Source of the load balancer's health probes.
pub const LB_PROBE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Pod `default/pls-app`.
pub const APP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 143);
/// Pod `default/my-nginx`.
pub const NGINX: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 124);
/// The pod range of the node.
pub const POD_CIDR: &str = "10.0.0.0/23";
/// `ClusterIP` of `default/pls-app`.
pub const APP_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 167, 20);
/// `ClusterIP` of `default/my-nginx`.
pub const NGINX_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 210, 33);
/// `NodePort` of `default/pls-app`.
pub const NODE_PORT: u16 = 32673;
/// Port of every service, and of the pods' servers behind them.
pub const SERVICE_PORT: u16 = 80;
/// Address of `cilium_host` where Cilium routes pods through it.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 81);
/// Address of `cilium_host` on managed AKS (`local-router-ipv4`).
pub const AKS_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 23, 0);

/// A pod: its Cilium endpoint and the two ends of its veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Cilium's endpoint id.
    pub endpoint_id: u16,
    /// Security identity of its labels.
    pub identity: u32,
    /// Name, in namespace `default`; also the value of its label `app`.
    pub name: &'static str,
    /// Its address.
    pub address: Ipv4Addr,
    /// MAC of its `eth0`.
    pub mac: &'static str,
    /// Name of the host side of its veth.
    pub host_interface: &'static str,
    /// MAC of the host side of its veth.
    pub host_mac: &'static str,
    /// Number of the host side of its veth, in every lab as in the recordings.
    pub host_ifindex: u32,
}

/// The pod of the article.
pub const APP_POD: Pod = Pod {
    endpoint_id: 2686,
    identity: 63921,
    name: "pls-app",
    address: APP,
    mac: "46:b6:6f:2e:11:8f",
    host_interface: "lxc6e1a54cbd011",
    host_mac: "5a:1d:0c:33:70:01",
    host_ifindex: 5,
};
/// A bystander.
pub const NGINX_POD: Pod = Pod {
    endpoint_id: 340,
    identity: 42305,
    name: "my-nginx",
    address: NGINX,
    mac: "46:b6:6f:2e:11:7c",
    host_interface: "lxc9c02dfb1a2b3",
    host_mac: "5a:1d:0c:33:70:02",
    host_ifindex: 6,
};
