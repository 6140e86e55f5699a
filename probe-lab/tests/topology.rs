//! The world itself, without any datapath of Cilium's: who reaches whom, what is left behind, what NAT does.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use probe_lab::addresses::{
    APP, CONSUMER, ILB, LB_PROBE, NAT_IPS, NGINX, NODE, PRIVATE_ENDPOINT, SERVICE_PORT, VM,
};
use probe_lab::{ClientSaw, Instance, Lab, LabOptions, Ns, Probe, Proto, Shape};

/// An instance of this test run's own, or `None` with a word why.
fn instance(test: &str) -> Option<String> {
    if let Some(why) = probe_lab::unavailable() {
        fixtures::skip!("{why}");
        return None;
    }
    Some(format!("t{}-{test}", std::process::id()))
}

fn up(instance: &str, shape: Shape) -> Lab {
    Lab::up_without_datapath(&LabOptions { instance: instance.to_owned(), shape, ..LabOptions::default() })
        .expect("the lab comes up")
}

/// What a lab called `instance` shows on the machine: namespaces, mounts, folders.
fn traces_of(instance: &str) -> BTreeSet<String> {
    let list = |dir: &str| -> Vec<String> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned());
    let found = list("/run/netns").into_iter().chain(list("/run/plsprobe-lab")).chain(mounts);
    found.filter(|path| path.contains(instance)).collect()
}

/// The machine's own interfaces and routes.
fn machine() -> String {
    let show = |what: &str| Command::new("ip").args(["-o", what, "show"]).output().unwrap().stdout;
    // Counters and lifetimes are in neither of these outputs.
    [show("link"), show("route")].map(|text| String::from_utf8(text).unwrap()).concat()
}

#[test]
fn down_leaves_nothing_behind() {
    let Some(instance) = instance("clean") else { return };
    let before = machine();
    let lab = up(&instance, Shape::Aks);
    assert!(Path::new(&lab.bpffs().join("tc/globals")).is_dir());
    // The namespaces, the folder, the lock and the mount.
    assert_eq!(traces_of(&instance).len(), Ns::ALL.len() + 3, "{:?}", traces_of(&instance));
    assert_eq!(machine(), before);
    lab.down().unwrap();
    assert_eq!(traces_of(&instance), BTreeSet::new());
    assert_eq!(machine(), before);
}

#[test]
fn dropping_takes_down() {
    let Some(instance) = instance("drop") else { return };
    drop(up(&instance, Shape::Kpr));
    assert_eq!(traces_of(&instance), BTreeSet::new());
}

#[test]
fn one_owner_per_instance() {
    let Some(instance) = instance("owner") else { return };
    let lab = up(&instance, Shape::Aks);
    let second =
        Lab::up_without_datapath(&LabOptions { instance: instance.clone(), ..LabOptions::default() });
    let err = second.unwrap_err().to_string();
    assert_eq!(
        err,
        format!("instance `{instance}` is up already; run `plsprobe-lab down --instance {instance}`")
    );
    // The refused owner has taken nothing down.
    assert_eq!(saw(&lab, Probe::tcp(Ns::Pls, NAT_IPS[0], APP, 80)), ClientSaw::Ok);
}

#[test]
fn bad_instance_names_are_refused() {
    for name in ["", "Lab", "../lab", "a/b", &"x".repeat(33)] {
        assert!(Instance::new(name).is_err(), "{name}");
    }
}

#[test]
fn everybody_reaches_the_pod_through_the_hosts_stack() {
    let Some(instance) = instance("reach") else { return };
    let lab = up(&instance, Shape::Aks);
    let tcp = Probe::tcp;
    let [nat_ip, other_nat_ip] = NAT_IPS;
    for probe in [
        tcp(Ns::Pls, nat_ip, APP, 80),
        tcp(Ns::Pls, other_nat_ip, APP, 443),
        tcp(Ns::Vm, VM, APP, 8080),
        tcp(Ns::Fabric, LB_PROBE, APP, 8090),
        tcp(Ns::Nginx, NGINX, APP, 80),
        tcp(Ns::Node, NODE, APP, 80),
        tcp(Ns::App, APP, VM, 80),
        tcp(Ns::App, APP, VM, 8080),
        tcp(Ns::App, APP, nat_ip, 80),
        tcp(Ns::App, APP, NGINX, 80),
        tcp(Ns::Pls, nat_ip, APP, 53).with_proto(Proto::Udp),
        tcp(Ns::Pls, nat_ip, APP, 0).with_proto(Proto::Icmp),
        tcp(Ns::Pls, nat_ip, NODE, 0).with_proto(Proto::Icmp),
    ] {
        assert_eq!(saw(&lab, probe), ClientSaw::Ok, "{probe}");
    }
    assert_eq!(saw(&lab, tcp(Ns::Pls, nat_ip, APP, 81)), ClientSaw::Refused);
    assert_eq!(saw(&lab, tcp(Ns::Pls, nat_ip, APP, 54).with_proto(Proto::Udp)), ClientSaw::Refused);
    // Nobody answers for the frontend yet: that is the datapath's work.
    assert_eq!(saw(&lab, tcp(Ns::Pls, nat_ip, ILB, SERVICE_PORT)), ClientSaw::Timeout);
}

#[test]
fn interfaces_are_numbered_as_in_the_recordings() {
    let Some(instance) = instance("ifindex") else { return };
    let lab = up(&instance, Shape::Kpr);
    let names = ["eth0", "cilium_net", "cilium_host", "lxc6e1a54cbd011", "lxc9c02dfb1a2b3"];
    let numbers = names.map(|name| lab.ifindex(Ns::Node, name).unwrap());
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
}

/// The consumer's connection arrives from a NAT IP, and nothing from the consumer's own range ever arrives, though
/// it overlaps with the pod range.
#[test]
fn the_node_sees_nat_ips_and_no_consumer() {
    let Some(instance) = instance("nat") else { return };
    let lab = up(&instance, Shape::Aks);
    count_at_node(&lab);
    for port in [40000, 40001] {
        let probe = Probe::tcp(Ns::Consumer, CONSUMER, PRIVATE_ENDPOINT, SERVICE_PORT).with_src_port(port);
        assert_eq!(saw(&lab, probe), ClientSaw::Timeout, "nobody answers for the frontend yet");
    }
    // A direct attempt at the provider has no way there.
    let stray = Probe::tcp(Ns::Consumer, CONSUMER, APP, 80);
    assert!(!matches!(lab.probe(&stray), Ok(ClientSaw::Ok)), "{stray}");
    let counted = counters(&lab);
    assert!(counted.contains("counter first { packets 2 "), "{counted}");
    assert!(counted.contains("counter second { packets 2 "), "{counted}");
    assert!(counted.contains("counter consumer { packets 0 "), "{counted}");
}

fn count_at_node(lab: &Lab) {
    let [first, second] = NAT_IPS;
    let rules = format!(
        "table ip count {{
           counter first {{}}
           counter second {{}}
           counter consumer {{}}
           chain seen {{
             type filter hook prerouting priority -400; policy accept;
             iifname eth0 ip saddr {first} ip daddr {ILB} tcp dport 80 counter name first
             iifname eth0 ip saddr {second} ip daddr {ILB} tcp dport 80 counter name second
             iifname eth0 ip saddr 10.0.0.0/24 counter name consumer
           }}
         }}"
    );
    let file = lab.run_dir().join("count.nft");
    fs::write(&file, rules).unwrap();
    let output = lab.netns(Ns::Node).command("nft").unwrap().arg("-f").arg(&file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The counters, one a line.
fn counters(lab: &Lab) -> String {
    let mut list = lab.netns(Ns::Node).command("nft").unwrap();
    let text = String::from_utf8(list.args(["list", "counters"]).output().unwrap().stdout).unwrap();
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn saw(lab: &Lab, probe: Probe) -> ClientSaw {
    lab.probe(&probe).unwrap_or_else(|err| panic!("{err:#}"))
}
