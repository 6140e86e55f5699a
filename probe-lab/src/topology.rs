//! The namespaces, links, addresses and routes: one `ip -batch` per namespace.
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::addresses::{
    AKS_ROUTER, APP_CLUSTER_IP, APP_POD, CONSUMER, FABRIC_MAC, GATEWAY, ILB, ILB_SECOND, LB_PROBE, NAT_IPS,
    NGINX_CLUSTER_IP, NGINX_POD, NODE, NODE_MAC, PLS_MAC, POD_CIDR, PRIVATE_ENDPOINT, Pod, ROUTER,
    SERVICE_PORT, VM, VM_GATEWAY,
};
use crate::instance::Instance;
use crate::lab::Shape;
use crate::netns::{Netns, Ns};
use crate::shell;

/// The routing table of sockets bound to a NAT IP: they mean the provider's side, where 10.0.0.0/24 is pods and
/// not the consumer's subnet.
const PROVIDER_TABLE: u32 = 100;

/// Builds the world in `shape`. What fails half-way is left for the caller to sweep.
pub(crate) fn build(instance: &Instance, shape: Shape) -> Result<()> {
    let names = Ns::ALL.map(|ns| format!("netns add {}", instance.netns(ns).name()));
    shell::run_with_input(Command::new("ip").args(["-batch", "-"]), &names.join("\n"))?;
    for ns in Ns::ALL {
        let netns = instance.netns(ns);
        netns.run_in(|| set_defaults(ns)).flatten().with_context(|| format!("in `{}`", netns.name()))?;
    }
    let router = router(shape);
    // Links first, all from the sides that own both ends' addresses; then what needs both ends.
    batch(&instance.netns(Ns::Node), &node_links(instance))?;
    batch(&instance.netns(Ns::Pls), &pls_links(instance))?;
    batch(&instance.netns(Ns::Vm), &vm(instance))?;
    batch(&instance.netns(Ns::Fabric), &fabric())?;
    batch(&instance.netns(Ns::Node), &node_addresses(shape))?;
    instance.netns(Ns::Node).run_in(set_node_source_checks).flatten()?;
    batch(&instance.netns(Ns::Pls), &pls_addresses())?;
    batch(&instance.netns(Ns::Consumer), &consumer())?;
    batch(&instance.netns(Ns::App), &pod(&APP_POD, router))?;
    batch(&instance.netns(Ns::Nginx), &pod(&NGINX_POD, router))?;
    let mut nft = instance.netns(Ns::Pls).command("nft")?;
    shell::run_with_input(nft.args(["-f", "-"]), &private_link_nat())?;
    Ok(())
}

/// The address of `cilium_host`, which is also the pods' gateway.
pub(crate) fn router(shape: Shape) -> Ipv4Addr {
    match shape {
        Shape::Aks => AKS_ROUTER,
        Shape::Kpr | Shape::KubeProxy => ROUTER,
    }
}

fn batch(netns: &Netns, commands: &[String]) -> Result<()> {
    shell::run_with_input(
        Command::new("ip").args(["-n", netns.name(), "-batch", "-"]),
        &commands.join("\n"),
    )?;
    Ok(())
}

/// No IPv6 (its chatter would be in every capture), forwarding where there is a router, no reverse-path filter.
fn set_defaults(ns: Ns) -> Result<()> {
    for scope in ["all", "default"] {
        sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
        sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    let forwards = matches!(ns, Ns::Node | Ns::Fabric | Ns::Pls);
    sysctl("ipv4/ip_forward", if forwards { "1" } else { "0" })
}

/// The reverse-path filter as on an AKS node (Ubuntu 22.04): systemd's default is loose mode, which `eth0` gets;
/// Cilium turns the filter off for `all` and for its own interfaces, since replies take other ways than requests.
///
/// The stand-in hands a `NodePort`'s reply to the stack after reverse NAT, with the node's own address as the source,
/// where Cilium redirects it past the stack: without `accept_local` the stack would drop it.
fn set_node_source_checks() -> Result<()> {
    sysctl("ipv4/conf/eth0/rp_filter", "2")?;
    [APP_POD, NGINX_POD].iter().try_for_each(accept_local)
}

fn accept_local(pod: &Pod) -> Result<()> {
    sysctl(&format!("ipv4/conf/{}/accept_local", pod.host_interface), "1")
}

/// Writes one setting under `/proc/sys/net`, which shows the namespace of the calling thread.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    match fs::write(&path, value) {
        // A kernel without IPv6 has nothing to turn off.
        Err(err) if err.kind() == std::io::ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
        result => result.with_context(|| format!("failed to write `{value}` to `{path}`")),
    }
}

/// In this order, so that interfaces have the numbers of the recordings: `eth0` 2, `cilium_net` 3, `cilium_host` 4,
/// the pods 5 and 6.
fn node_links(instance: &Instance) -> Vec<String> {
    let fabric = instance.netns(Ns::Fabric);
    let mut lines = vec![format!(
        "link set lo up\n\
         link add eth0 address {NODE_MAC} type veth peer name node netns {}\n\
         link add cilium_host type veth peer name cilium_net",
        fabric.name()
    )];
    lines.extend([APP_POD, NGINX_POD].iter().map(|pod| pod_link(instance, pod)));
    lines
}

fn pod_link(instance: &Instance, pod: &Pod) -> String {
    format!(
        "link add {} address {} type veth peer name eth0 address {} netns {}",
        pod.host_interface,
        pod.host_mac,
        pod.mac,
        instance.netns(pod_netns(pod)).name()
    )
}

fn pod_netns(pod: &Pod) -> Ns {
    if *pod == APP_POD { Ns::App } else { Ns::Nginx }
}

fn node_addresses(shape: Shape) -> Vec<String> {
    let router = router(shape);
    let mut lines = vec![format!(
        "link set eth0 up\n\
         addr add {NODE}/16 dev eth0\n\
         neigh replace {GATEWAY} lladdr {FABRIC_MAC} dev eth0 nud permanent\n\
         route add default via {GATEWAY} dev eth0\n\
         link set cilium_net arp off up\n\
         link set cilium_host arp off up\n\
         addr add {router}/32 dev cilium_host\n\
         link set {} up\n\
         link set {} up",
        APP_POD.host_interface, NGINX_POD.host_interface,
    )];
    lines.extend([APP_POD, NGINX_POD].iter().flat_map(|pod| to_pod(pod, shape)));
    if shape != Shape::Aks {
        lines.push(format!(
            "route add {router} dev cilium_host proto kernel scope link\n\
             route add {POD_CIDR} via {router} dev cilium_host proto kernel src {router}"
        ));
    }
    lines
}

/// What the node knows of a pod.
fn to_pod(pod: &Pod, shape: Shape) -> Vec<String> {
    let (address, interface) = (pod.address, pod.host_interface);
    // A datapath that answers or hides ARP is not the lab's subject.
    let mut lines = vec![format!("neigh replace {address} lladdr {} dev {interface} nud permanent", pod.mac)];
    if shape == Shape::Aks {
        lines.push(format!("route add {address} dev {interface} proto kernel scope link"));
    }
    lines
}

/// Deletes a pod's veth and makes it anew; only its number is another.
pub(crate) fn recreate_pod(instance: &Instance, gone: &Pod, shape: Shape) -> Result<()> {
    let node = instance.netns(Ns::Node);
    let interface = gone.host_interface;
    let mut lines = vec![format!("link del {interface}"), pod_link(instance, gone)];
    lines.push(format!("link set {interface} up"));
    lines.extend(to_pod(gone, shape));
    batch(&node, &lines)?;
    node.run_in(|| accept_local(gone)).flatten()?;
    batch(&instance.netns(pod_netns(gone)), &pod(gone, router(shape)))
}

/// A pod sees one neighbour, the host side of its veth, whatever the gateway's address is.
fn pod(pod: &Pod, router: Ipv4Addr) -> Vec<String> {
    vec![format!(
        "link set lo up\n\
         link set eth0 up\n\
         addr add {}/32 dev eth0\n\
         neigh replace {router} lladdr {} dev eth0 nud permanent\n\
         route add {router} dev eth0 scope link\n\
         route add default via {router} dev eth0",
        pod.address, pod.host_mac
    )]
}

/// The `VNet` is a bridge; its router carries the bridge's address and knows what lies behind the node.
fn fabric() -> Vec<String> {
    let mut lines = vec![format!(
        "link set lo up\n\
         link add br0 address {FABRIC_MAC} type bridge forward_delay 0 mcast_snooping 0\n\
         link set node master br0 up\n\
         link set pls master br0 up\n\
         link set br0 up\n\
         addr add {GATEWAY}/16 dev br0\n\
         link set vm up\n\
         addr add {VM_GATEWAY}/24 dev vm\n\
         addr add {LB_PROBE}/32 dev lo"
    )];
    for target in behind_node() {
        lines.push(format!("route add {target} via {NODE} dev br0"));
    }
    lines
}

fn vm(instance: &Instance) -> Vec<String> {
    let fabric = instance.netns(Ns::Fabric);
    vec![format!(
        "link set lo up\n\
         link add eth0 type veth peer name vm netns {}\n\
         link set eth0 up\n\
         addr add {VM}/24 dev eth0\n\
         route add default via {VM_GATEWAY} dev eth0",
        fabric.name()
    )]
}

fn pls_links(instance: &Instance) -> Vec<String> {
    vec![format!(
        "link set lo up\n\
         link add eth0 address {PLS_MAC} type veth peer name pls netns {}\n\
         link add consumer type veth peer name eth0 netns {}",
        instance.netns(Ns::Fabric).name(),
        instance.netns(Ns::Consumer).name()
    )]
}

fn pls_addresses() -> Vec<String> {
    let mut lines = vec!["link set eth0 up\nlink set consumer up".to_owned()];
    lines.push(format!("addr add {PRIVATE_ENDPOINT}/24 dev consumer"));
    for nat_ip in NAT_IPS {
        lines.push(format!("addr add {nat_ip}/16 dev eth0"));
    }
    lines.push(format!("route add default via {GATEWAY} dev eth0"));
    lines.push(format!("route add 10.224.0.0/16 dev eth0 scope link table {PROVIDER_TABLE}"));
    lines.push(format!("route add default via {GATEWAY} dev eth0 table {PROVIDER_TABLE}"));
    for target in behind_node() {
        lines.push(format!("route add {target} via {NODE} dev eth0 table {PROVIDER_TABLE}"));
    }
    // The consumer's packets are still unbound to a NAT IP when they are routed: they use the main table.
    lines.push(format!("route add {ILB} via {NODE} dev eth0\nroute add {ILB_SECOND} via {NODE} dev eth0"));
    for nat_ip in NAT_IPS {
        lines.push(format!("rule add from {nat_ip} lookup {PROVIDER_TABLE} pref {PROVIDER_TABLE}"));
    }
    lines
}

fn consumer() -> Vec<String> {
    vec![format!("link set lo up\nlink set eth0 up\naddr add {CONSUMER}/24 dev eth0")]
}

/// What only the node can deliver: load-balancer frontends (floating IP keeps them as the destination), pods,
/// `ClusterIP`s.
fn behind_node() -> [String; 5] {
    [
        ILB.to_string(),
        ILB_SECOND.to_string(),
        POD_CIDR.to_owned(),
        APP_CLUSTER_IP.to_string(),
        NGINX_CLUSTER_IP.to_string(),
    ]
}

/// Private Link: the connection to the private endpoint ends up at the load balancer's frontend, from a NAT IP.
///
/// Azure picks the NAT IP per connection. Here the consumer's source port does: even is the first, odd the second,
/// so that a test can choose. The last chain is the promise of Private Link: no consumer address reaches the provider.
fn private_link_nat() -> String {
    let [even, odd] = NAT_IPS;
    format!(
        "table ip private_link {{
  chain endpoint {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"consumer\" ip daddr {PRIVATE_ENDPOINT} tcp dport {SERVICE_PORT} dnat to {ILB}:{SERVICE_PORT}
  }}
  chain nat_ips {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname \"consumer\" oifname \"eth0\" tcp sport & 1 == 0 snat to {even}
    iifname \"consumer\" oifname \"eth0\" snat to {odd}
  }}
  chain no_consumer_address {{
    type filter hook postrouting priority srcnat + 10; policy accept;
    oifname \"eth0\" ip saddr {consumer_subnet} drop
  }}
}}
",
        consumer_subnet = "10.0.0.0/24"
    )
}
