//! iptables rules in kube-proxy's manner, for the shape without kube-proxy replacement.
//!
//! Source: kube-proxy's `pkg/proxy/iptables/proxier.go` (Kubernetes 1.28) for the chains; the recording
//! `cilium-1.14-tunnel-kubeproxy/node/iptables-save.txt` for Cilium's own rules beside them.
use anyhow::Result;

use crate::addresses::{
    APP, APP_CLUSTER_IP, ILB, NGINX, NGINX_CLUSTER_IP, NODE_PORT, POD_CIDR, ROUTER, SERVICE_PORT,
};
use crate::netns::Netns;
use crate::shell;

/// Installs the rules on the node.
pub(crate) fn install(node: &Netns) -> Result<()> {
    shell::run_with_input(&mut node.command("iptables-restore")?, &rules())?;
    Ok(())
}

/// The load balancer's frontend and the `NodePort` are of externalTrafficPolicy Cluster: masqueraded, so that the
/// pod sees the node.
fn rules() -> String {
    format!(
        r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CILIUM_FORWARD - [0:0]
:CILIUM_OUTPUT - [0:0]
-A FORWARD -m comment --comment "cilium-feeder: CILIUM_FORWARD" -j CILIUM_FORWARD
-A OUTPUT -m comment --comment "cilium-feeder: CILIUM_OUTPUT" -j CILIUM_OUTPUT
-A CILIUM_FORWARD -o cilium_host -m comment --comment "cilium: any->cluster on cilium_host forward accept" -j ACCEPT
-A CILIUM_FORWARD -i cilium_host -m comment --comment "cilium: cluster->any on cilium_host forward accept (nodeport)" -j ACCEPT
-A CILIUM_FORWARD -i lxc+ -m comment --comment "cilium: cluster->any on lxc+ forward accept" -j ACCEPT
-A CILIUM_OUTPUT -m mark ! --mark 0xe00/0xf00 -m mark ! --mark 0xd00/0xf00 -m mark ! --mark 0xa00/0xe00 -m mark ! --mark 0x800/0xe00 -m mark ! --mark 0xf00/0xf00 -m comment --comment "cilium: host->any mark as from host" -j MARK --set-xmark 0xc00/0xf00
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CILIUM_POST_nat - [0:0]
:KUBE-EXT-PLSAPP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-MYNGINX - [0:0]
:KUBE-SEP-PLSAPP - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-MYNGINX - [0:0]
:KUBE-SVC-PLSAPP - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "cilium-feeder: CILIUM_POST_nat" -j CILIUM_POST_nat
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A CILIUM_POST_nat -s {POD_CIDR} ! -d 10.0.0.0/16 ! -o cilium_+ -m comment --comment "cilium masquerade non-cluster" -j MASQUERADE
-A CILIUM_POST_nat ! -s {POD_CIDR} ! -d {POD_CIDR} -o cilium_host -m comment --comment "cilium host->cluster masquerade" -j SNAT --to-source {ROUTER}
-A KUBE-EXT-PLSAPP -m comment --comment "masquerade traffic for default/pls-app:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-PLSAPP -j KUBE-SVC-PLSAPP
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/pls-app:http" -m tcp --dport {NODE_PORT} -j KUBE-EXT-PLSAPP
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-MYNGINX -s {NGINX}/32 -m comment --comment "default/my-nginx:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-MYNGINX -p tcp -m comment --comment "default/my-nginx:http" -m tcp -j DNAT --to-destination {NGINX}:{SERVICE_PORT}
-A KUBE-SEP-PLSAPP -s {APP}/32 -m comment --comment "default/pls-app:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-PLSAPP -p tcp -m comment --comment "default/pls-app:http" -m tcp -j DNAT --to-destination {APP}:{SERVICE_PORT}
-A KUBE-SERVICES -d {APP_CLUSTER_IP}/32 -p tcp -m comment --comment "default/pls-app:http cluster IP" -m tcp --dport {SERVICE_PORT} -j KUBE-SVC-PLSAPP
-A KUBE-SERVICES -d {ILB}/32 -p tcp -m comment --comment "default/pls-app:http loadbalancer IP" -m tcp --dport {SERVICE_PORT} -j KUBE-EXT-PLSAPP
-A KUBE-SERVICES -d {NGINX_CLUSTER_IP}/32 -p tcp -m comment --comment "default/my-nginx:http cluster IP" -m tcp --dport {SERVICE_PORT} -j KUBE-SVC-MYNGINX
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-MYNGINX ! -s {POD_CIDR} -d {NGINX_CLUSTER_IP}/32 -p tcp -m comment --comment "default/my-nginx:http cluster IP" -m tcp --dport {SERVICE_PORT} -j KUBE-MARK-MASQ
-A KUBE-SVC-MYNGINX -m comment --comment "default/my-nginx:http -> {NGINX}:{SERVICE_PORT}" -j KUBE-SEP-MYNGINX
-A KUBE-SVC-PLSAPP ! -s {POD_CIDR} -d {APP_CLUSTER_IP}/32 -p tcp -m comment --comment "default/pls-app:http cluster IP" -m tcp --dport {SERVICE_PORT} -j KUBE-MARK-MASQ
-A KUBE-SVC-PLSAPP -m comment --comment "default/pls-app:http -> {APP}:{SERVICE_PORT}" -j KUBE-SEP-PLSAPP
COMMIT
"#
    )
}
