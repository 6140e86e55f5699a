//! `plsprobe trace` on a live node: every scenario in every shape of the lab, and what goes wrong meanwhile.

mod live;

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use probe_lab::load::{Load, LoadOptions};
use probe_lab::scenario::{Client, SCENARIOS};
use probe_lab::tracing::Trace;
use probe_lab::{ClientSaw, Header, LINK_ID, Lab, Ns, Shape};
use serde_json::Value;

use live::lab;

/// Starts one in the lab's node and waits until it is attached.
fn start(lab: &mut Lab, args: &str) -> Trace {
    Trace::attached(lab, env!("CARGO_BIN_EXE_plsprobe"), args)
}

/// tc's filters of every interface of the node.
fn filters(lab: &Lab) -> String {
    let script = "for dev in eth0 cilium_host lxc6e1a54cbd011; do for d in ingress egress; do tc filter show dev $dev $d 2>/dev/null; done; done";
    let output = lab.netns(Ns::Node).command("sh").unwrap().args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the attempts, one after another as the table has them.
fn send(lab: &Lab, clients: &[Client]) -> Vec<ClientSaw> {
    std::thread::scope(|scope| {
        let attempts: Vec<_> = clients
            .iter()
            .map(|client| {
                std::thread::sleep(Duration::from_millis(50));
                scope.spawn(|| lab.probe(&lab.scenario().probe(*client)).unwrap())
            })
            .collect();
        attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    })
}

/// Whether what the client saw fits the verdict and outcome of its flow.
fn check(name: &str, client: Client, saw: ClientSaw, flow: &Value) {
    let (verdict, outcome) =
        (flow["verdict"].as_str().unwrap(), flow["outcome"]["outcome"].as_str().unwrap());
    let expected = match saw {
        ClientSaw::Ok | ClientSaw::Rejected => ("allowed", "answered"),
        ClientSaw::Refused => ("allowed", "refused"),
        ClientSaw::Timeout => ("dropped", "dropped-by-cilium"),
    };
    assert_eq!((verdict, outcome), expected, "{name}, {client}: {flow:#}");
    assert_eq!(flow["findings"], Value::Array(vec![]), "{name}, {client}: views disagree: {flow:#}");
}

/// Whether what the health probe saw fits what was told of it.
fn check_probe(name: &str, saw: ClientSaw, with_header: bool, told: &[Value]) {
    assert_eq!(told.len(), 1, "{name}: {told:#?}");
    let probe = &told[0];
    let answer = probe["answer"].as_str().unwrap();
    match saw {
        ClientSaw::Ok => {
            assert_eq!((answer, &probe["status"]), ("http-status", &200.into()), "{name}: {probe:#}");
        }
        ClientSaw::Rejected => assert!(matches!(answer, "http-status" | "reset"), "{name}: {probe:#}"),
        ClientSaw::Refused => assert_eq!(answer, "refused", "{name}: {probe:#}"),
        ClientSaw::Timeout => assert_eq!(answer, "dropped", "{name}: {probe:#}"),
    }
    let conclusion = if saw == ClientSaw::Ok { "up" } else { "failing" };
    assert_eq!(
        (&probe["conclusion"], &probe["role"]),
        (&conclusion.into(), &"target".into()),
        "{name}: {probe:#}"
    );
    if matches!(saw, ClientSaw::Ok | ClientSaw::Rejected) {
        assert_eq!(probe["with_proxy_header"], with_header, "{name}: {probe:#}");
    }
}

fn every_scenario(shape: Shape) {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.shapes.contains(&shape)) {
        let name = format!("{} in {shape}", scenario.name);
        let Some(mut lab) = lab(&format!("{shape}-{}", scenario.name), shape, scenario.name) else { return };
        let before = filters(&lab);
        let trace = start(&mut lab, "--dst pls-app -o json --count 4 --duration 12s");
        // The probe first: what is watched besides does not keep a trace from its end.
        let probed = send(&lab, &[Client::HealthProbe])[0];
        let saw = send(&lab, &Client::TO_APP);
        let traced = trace.finish();
        assert_eq!(filters(&lab), before, "{name}: nothing of ours remains");
        for (client, saw) in Client::TO_APP.into_iter().zip(&saw) {
            assert_eq!(*saw, scenario.expected(client), "{name}, {client}");
            check(&name, client, *saw, &traced.flow(client));
        }
        assert_eq!(probed, scenario.expected(Client::HealthProbe), "{name}");
        check_probe(&name, probed, scenario.proxy, &traced.probes());
        let dropped = saw.contains(&ClientSaw::Timeout);
        assert_eq!(traced.code, Some(i32::from(dropped)), "{name}: {}", traced.stderr);
        let summary = traced.summary();
        assert_eq!(summary["flows"]["total"], 4, "{name}");
        assert_eq!(summary["records"]["lost"], 0, "{name}");
    }
}

#[test]
fn every_scenario_with_endpoint_routes() {
    every_scenario(Shape::Aks);
}

#[test]
fn every_scenario_with_host_routing() {
    every_scenario(Shape::Kpr);
}

#[test]
fn every_scenario_behind_kube_proxy() {
    every_scenario(Shape::KubeProxy);
}

#[test]
fn what_kube_proxy_translated_netfilter_confirms() {
    let Some(mut lab) = lab("netfilter", Shape::KubeProxy, "kube-proxy") else { return };
    let trace = start(&mut lab, "--dst pls-app -o json --count 1 --duration 20s");
    send(&lab, &[Client::PeeredVm]);
    let flow = trace.finish().flow(Client::PeeredVm);
    assert_eq!(flow["rewrites"][0]["dnat"], true, "{flow:#}");
    assert_eq!(flow["confirmed_by"]["map"], "nf_conntrack", "{flow:#}");
}

#[test]
fn three_lines_for_an_answer_and_fifteen_for_a_drop() {
    let Some(mut lab) = lab("lines", Shape::Aks, "allow-nat-ip") else { return };
    let nat_ips = "--pls-nat-ip 10.224.0.8 --pls-nat-ip 10.224.0.9";
    let trace = start(&mut lab, &format!("--dst pls-app --src pls {nat_ips} --count 2 --duration 8s"));
    send(&lab, &[Client::ConsumerFirstNatIp, Client::ConsumerSecondNatIp, Client::PeeredVm]);
    let traced = trace.finish();
    let blocks: Vec<Vec<&str>> = traced.stdout.lines().fold(Vec::new(), |mut blocks, line| {
        if !line.starts_with(' ') {
            blocks.push(Vec::new());
        }
        blocks.last_mut().expect("a flow begins without a space").push(line);
        blocks
    });
    let of = |address: &str| {
        let found: Vec<_> = blocks.iter().filter(|block| block[0].starts_with(address)).collect();
        assert_eq!(found.len(), 1, "{}", traced.stdout);
        found[0].clone()
    };
    let answered = of("10.224.0.8:");
    assert_eq!(answered.len(), 3, "{answered:#?}");
    assert!(answered[0].contains(" -> 10.224.0.7:80 TCP: allowed, answered after "), "{answered:#?}");
    assert!(answered[1].contains("PLS NAT IP 10.224.0.8"), "{answered:#?}");
    assert!(answered[1].contains("DNAT 10.224.0.7:80 to 10.0.0.143:80"), "{answered:#?}");
    assert!(answered[2].contains("NetworkPolicy default/allow-pls-nat"), "{answered:#?}");
    let dropped = of("10.224.0.9:");
    assert!(dropped.len() <= 15, "{dropped:#?}");
    assert!(dropped[0].ends_with(": dropped by Cilium, Policy denied (133)"), "{dropped:#?}");
    for wanted in
        ["NetworkPolicy default/allow-pls-nat selects default/pls-app", "  entry    none in cilium_policy_"]
    {
        assert!(dropped.iter().any(|line| line.contains(wanted)), "no `{wanted}`: {dropped:#?}");
    }
    assert!(!traced.stdout.contains("10.221.1.4"), "`--src pls` is the NAT IPs alone: {}", traced.stdout);
}

#[test]
fn a_signal_ends_it_with_nothing_left_attached() {
    let Some(mut lab) = lab("signal", Shape::Aks, "none") else { return };
    let before = filters(&lab);
    for (signal, traffic, code) in [("INT", false, 130), ("TERM", false, 130), ("INT", true, 0)] {
        let trace = start(&mut lab, "--dst pls-app -o json --duration 60s");
        assert_ne!(filters(&lab), before);
        if traffic {
            send(&lab, &[Client::PeeredVm]);
        }
        trace.signal(signal);
        let traced = trace.finish();
        assert_eq!(traced.code, Some(code), "signal {signal}: {}\n{}", traced.stdout, traced.stderr);
        assert_eq!(traced.flows().len(), usize::from(traffic));
        assert_eq!(filters(&lab), before);
    }
}

#[test]
fn sigkill_leaves_what_the_next_run_removes() {
    let Some(mut lab) = lab("kill", Shape::Aks, "none") else { return };
    let before = filters(&lab);
    let trace = start(&mut lab, "--dst pls-app --duration 60s");
    drop(trace);
    assert_ne!(filters(&lab), before, "legacy filters survive SIGKILL");
    // Packets pass all the same.
    assert_eq!(send(&lab, &[Client::PeeredVm]), [ClientSaw::Ok]);
    let trace = start(&mut lab, "--dst pls-app -o json --count 1 --duration 8s");
    send(&lab, &[Client::PeeredVm]);
    let traced = trace.finish();
    assert_eq!((traced.code, traced.flows().len()), (Some(0), 1), "{}", traced.stderr);
    assert_eq!(filters(&lab), before);
}

#[test]
fn the_agent_stops_and_comes_back() {
    let Some(mut lab) = lab("agent", Shape::Aks, "seed-deny") else { return };
    let mut trace = start(&mut lab, "--dst pls-app -o json --count 2 --duration 20s");
    lab.stop_agent();
    trace.wait_for("lost Cilium's monitor socket");
    // Without the agent's word, the kernel's drop and the maps still tell.
    send(&lab, &[Client::PeeredVm]);
    lab.start_agent().unwrap();
    trace.wait_for("is back");
    send(&lab, &[Client::ConsumerFirstNatIp]);
    let traced = trace.finish();
    let (without, with) = (traced.flow(Client::PeeredVm), traced.flow(Client::ConsumerFirstNatIp));
    assert_eq!((without["verdict"].as_str(), with["verdict"].as_str()), (Some("dropped"), Some("dropped")));
    assert_eq!(without["outcome"]["name"], "TC_EGRESS", "{without:#}");
    assert_eq!(without["explanation"]["drop_reason"]["code"], 133, "{without:#}");
    assert_eq!(with["outcome"]["outcome"], "dropped-by-cilium", "{with:#}");
    assert_eq!(traced.code, Some(1));
}

/// It takes connections and answers none of them, so that the maps take seconds to be read. Records go on being read.
#[test]
fn an_agent_that_hangs_costs_no_record() {
    let Some(mut lab) = lab("hangs", Shape::Aks, "allow-nat-ip") else { return };
    // With an expression no packet is only counted.
    let args = "--dst pls-app -o json --ring-bytes 524288 --duration 1h --filter ip";
    let mut trace = start(&mut lab, args);
    lab.stop_agent();
    trace.wait_for("lost Cilium's monitor socket");
    let silent = UnixListener::bind(lab.run_dir().join("cilium.sock")).unwrap();
    // The maps have other keys now: the agent is asked at the next look.
    lab.change_policy("none").unwrap();
    // The ring holds the records of a second and a half, and an answer is waited for for five.
    let options = LoadOptions {
        pps: Some(1000),
        connections: 1,
        requests: 1,
        new_connections: 2,
        ..LoadOptions::default()
    };
    let load = Load::start(lab.instance(), &options).unwrap();
    let _asked = silent.accept().unwrap();
    std::thread::sleep(Duration::from_secs(6));
    load.stop().unwrap().check_harmless().unwrap();
    trace.signal("INT");
    let records = trace.finish().summary()["records"].clone();
    assert!(records["read"].as_u64().unwrap() > 5000, "{records}");
    assert_eq!(records["lost"], 0, "{records}");
}

/// Of streams of datagrams and of connections that stay, beside ones that are new.
#[test]
fn packets_of_flows_that_were_told_are_only_counted() {
    let Some(mut lab) = lab("counted", Shape::Aks, "none") else { return };
    let options = LoadOptions {
        pps: Some(2000),
        connections: 4,
        requests: 200,
        new_connections: 5,
        ..LoadOptions::default()
    };
    let mut beside = |args: &str| {
        let trace = start(&mut lab, &format!("--dst pls-app -o json --duration 1h {args}"));
        let load = Load::start(lab.instance(), &options).unwrap();
        std::thread::sleep(Duration::from_secs(4));
        load.stop().unwrap().check_harmless().unwrap();
        trace.signal("INT");
        let traced = trace.finish();
        assert_eq!(traced.code, Some(0), "{}", traced.stderr);
        for flow in traced.flows() {
            assert_eq!(
                (&flow["verdict"], &flow["outcome"]["outcome"]),
                (&"allowed".into(), &"answered".into())
            );
        }
        let summary = traced.summary();
        let records = &summary["records"];
        assert_eq!((&records["lost"], &records["unaccounted"]), (&0.into(), &0.into()), "{summary:#}");
        summary
    };
    let (counted, all) = (beside(""), beside("--filter ip"));
    let number = |summary: &Value, of: &str, what: &str| summary[of][what].as_u64().unwrap();
    for summary in [&counted, &all] {
        let (passed, matched) = (number(summary, "packets", "seen"), number(summary, "packets", "matched"));
        assert!(passed > 10_000 && matched > passed / 2, "{summary:#}");
    }
    let only_counted = number(&counted, "packets", "only_counted");
    assert!(only_counted > number(&counted, "packets", "matched") / 2, "{counted:#}");
    assert_eq!(number(&all, "packets", "only_counted"), 0);
    let [of_some, of_all] = [&counted, &all].map(|summary| number(summary, "records", "made"));
    assert!(of_some < of_all / 2, "{of_some} records, and {of_all}");
}

#[test]
fn the_pod_is_deleted_meanwhile() {
    let Some(mut lab) = lab("pod", Shape::Aks, "none") else { return };
    let mut trace = start(&mut lab, "--dst pls-app -o json --duration 6s");
    lab.run_in(Ns::Node, || Command::new("ip").args(["link", "del", "lxc6e1a54cbd011"]).status().unwrap())
        .unwrap();
    trace.wait_for("interface `lxc6e1a54cbd011` has gone");
    let traced = trace.finish();
    assert_eq!(traced.code, Some(3), "nothing was judged: {}", traced.stdout);
    let hooks = traced.summary()["hooks"].clone();
    let lost = hooks.as_array().unwrap().iter().filter(|hook| hook["state"] == "lost").count();
    assert_eq!(lost, 2, "{hooks:#}");
    assert!(!filters(&lab).contains("plsprobe"));
}

#[test]
fn a_ring_that_is_too_small_says_so() {
    let Some(mut lab) = lab("ring", Shape::Aks, "none") else { return };
    let mut trace = start(&mut lab, "--dst pls-app -o json --duration 9s --ring-bytes 4096");
    // Stopped, it reads nothing: the ring of some thirty records overflows.
    trace.signal("STOP");
    for _ in 0..6 {
        send(&lab, &[Client::PeeredVm]);
    }
    trace.signal("CONT");
    trace.wait_for("records lost in the last second; narrow the filter or raise `--ring-bytes`");
    let traced = trace.finish();
    assert!(traced.summary()["records"]["lost"].as_u64().unwrap() > 0, "{}", traced.stdout);
}

#[test]
fn what_cannot_be_traced_is_one_line_and_attaches_nothing() {
    let Some(lab) = lab("bad", Shape::Aks, "none") else { return };
    let run = |args: &[&str]| {
        let mut command = lab.netns(Ns::Node).command(env!("CARGO_BIN_EXE_plsprobe")).unwrap();
        command.arg("trace").args(args);
        command.arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let before = filters(&lab);
    for (args, wanted) in [
        (&["--dst", "pls-ap"][..], "unknown target `pls-ap`; pods on this node: default/pls-app"),
        (&["--dst", "pls-app", "--src", "pls"], "give each by `--pls-nat-ip IP`"),
        (&["--dst", "pls-app", "--interface", "nosuch0"], "no interface `nosuch0` in this network namespace"),
    ] {
        let (code, stderr) = run(args);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(wanted) && stderr.lines().count() == 1, "{stderr}");
    }
    assert_eq!(filters(&lab), before);
}

/// What is said of the bytes that a client sent first: kind, segments, and what came behind a header, where they were seen.
fn first_bytes(flow: &Value) -> Vec<(&str, &str, u64, Option<&str>)> {
    let seen = flow["first_bytes"].as_array().unwrap().iter().filter(|one| one["direction"] == "forward");
    seen.map(|one| {
        let segments = one["segments"].as_u64().unwrap();
        (one["point"].as_str().unwrap(), one["kind"].as_str().unwrap(), segments, one["then"].as_str())
    })
    .collect()
}

fn consumers_are_named(shape: Shape) {
    let Some(mut lab) = lab(&format!("consumer-{shape}"), shape, "proxy-parsed") else { return };
    let trace = start(&mut lab, "--dst pls-app -o json --count 3 --duration 40s");
    let split = Header::Consumer { split_at: Some(20) };
    for probe in [
        lab.scenario().probe(Client::ConsumerFirstNatIp),
        lab.scenario().probe(Client::ConsumerSecondNatIp).with_header(split),
        lab.scenario().probe(Client::PeeredVm),
    ] {
        assert_eq!(lab.probe(&probe).unwrap(), ClientSaw::Ok, "{shape}, {probe}");
    }
    let traced = trace.finish();
    for (client, segments) in [(Client::ConsumerFirstNatIp, 1), (Client::ConsumerSecondNatIp, 2)] {
        let flow = traced.flow(client);
        let consumer = &flow["consumer"];
        assert_eq!(consumer["link_id"], LINK_ID, "{flow:#}");
        assert_eq!(consumer["address"], probe_lab::addresses::CONSUMER.to_string(), "{flow:#}");
        assert!(consumer["port"].as_u64().unwrap() > 0, "{flow:#}");
        let seen = first_bytes(&flow);
        assert!(seen.contains(&("UplinkIn", "proxy-v2", segments, Some("http"))), "{shape}: {seen:?}");
        if shape == Shape::Aks {
            assert!(seen.contains(&("PodIn", "proxy-v2", segments, Some("http"))), "{shape}: {seen:?}");
        }
        assert_eq!(flow["origin"]["confidence"], "observed", "{flow:#}");
        assert_eq!((&flow["proxy"]["expected"], &flow["proxy"]["fault"]), (&Value::Null, &Value::Null));
        assert_eq!(flow["shown"]["reaction"]["status"], 200, "{flow:#}");
    }
    let direct = traced.flow(Client::PeeredVm);
    assert_eq!(direct["consumer"], Value::Null);
    assert!(first_bytes(&direct).contains(&("UplinkIn", "http", 1, None)), "{direct:#}");
    let consumers = traced.summary()["together"]["consumers"].clone();
    assert_eq!(consumers.as_array().unwrap().len(), 1, "{consumers:#}");
    assert_eq!(consumers[0]["flows"]["allowed"], 2, "{consumers:#}");
    assert_eq!(consumers[0]["nat_ips"], serde_json::json!(["10.224.0.8", "10.224.0.9"]));
    assert!(traced.stderr.contains("10.224.0.8 is a NAT IP of Private Link: a PROXY header with linkID"));
}

#[test]
fn consumers_are_named_with_endpoint_routes() {
    consumers_are_named(Shape::Aks);
}

#[test]
fn consumers_are_named_with_host_routing() {
    consumers_are_named(Shape::Kpr);
}

#[test]
fn consumers_are_named_behind_kube_proxy() {
    consumers_are_named(Shape::KubeProxy);
}

#[test]
fn an_operator_reads_who_the_consumer_is() {
    let Some(mut lab) = lab("reads", Shape::Aks, "proxy-unparsed") else { return };
    let trace = start(&mut lab, "--dst pls-app --count 1 --duration 40s");
    let probe = lab.scenario().probe(Client::ConsumerFirstNatIp);
    assert_eq!(lab.probe(&probe).unwrap(), ClientSaw::Rejected);
    let traced = trace.finish();
    let line = |label: &str| traced.stdout.lines().find(|line| line.starts_with(label)).unwrap_or_default();
    let (consumer, port) = (probe_lab::addresses::CONSUMER, probe.src_port.unwrap());
    let wanted = format!("consumer {consumer}:{port}, linkID {LINK_ID}");
    assert!(line("  proxy").contains(&wanted), "{}", traced.stdout);
    assert!(line("  proxy").contains("HTTP status 400 "), "{}", traced.stdout);
    assert!(line("10.224.0.8:").contains(", then HTTP status 400 "), "{}", traced.stdout);
    assert!(line("consumer ").contains("1 flows, 1 allowed"), "{}", traced.stdout);
    assert_eq!(traced.code, Some(0), "nothing on the node stopped it");
}

/// What the application made of first bytes that it did not understand, or missed.
fn check_rejected(scenario: &str, kind: &str, reaction: &str, status: Option<u16>) {
    let Some(mut lab) = lab(scenario, Shape::Aks, scenario) else { return };
    let trace = start(&mut lab, "--dst pls-app -o json --count 1 --duration 40s");
    assert_eq!(send(&lab, &[Client::ConsumerFirstNatIp]), [ClientSaw::Rejected]);
    let traced = trace.finish();
    let flow = traced.flow(Client::ConsumerFirstNatIp);
    assert!(first_bytes(&flow).iter().any(|one| (one.0, one.1) == ("PodIn", kind)), "{flow:#}");
    let shown = &flow["shown"]["reaction"];
    assert_eq!(
        (shown["kind"].as_str(), &shown["status"]),
        (Some(reaction), &serde_json::json!(status)),
        "{flow:#}"
    );
    assert!(shown["after_ns"].as_u64().unwrap() > 0);
    assert_eq!(flow["verdict"], "allowed", "{flow:#}");
}

#[test]
fn a_header_that_the_application_takes_for_a_bad_request() {
    check_rejected("proxy-unparsed", "proxy-v2", "http-status", Some(400));
}

#[test]
fn a_header_that_the_application_resets() {
    check_rejected("proxy-reset", "proxy-v2", "reset", None);
}

#[test]
fn a_header_that_the_application_misses() {
    check_rejected("proxy-demanded", "http", "reset", None);
}

#[test]
fn probes_that_fail_take_the_node_out() {
    let Some(mut lab) = lab("out", Shape::Aks, "proxy-reset") else { return };
    let trace = start(&mut lab, "--dst pls-app -o json --duration 60s");
    for _ in 0..3 {
        assert_eq!(send(&lab, &[Client::HealthProbe]), [ClientSaw::Rejected]);
    }
    trace.signal("INT");
    let traced = trace.finish();
    assert_eq!(traced.probes().len(), 1, "told when it begins, not each time: {}", traced.stdout);
    assert_eq!(traced.flows(), [] as [Value; 0]);
    let probes = traced.summary()["probes"].clone();
    assert_eq!(probes[0]["conclusion"], "down", "{probes:#}");
    assert_eq!((&probes[0]["seen"], &probes[0]["failed_in_a_row"]), (&3.into(), &3.into()));
    assert_eq!(probes[0]["rule"]["assumed"], true);
    assert_eq!(traced.code, Some(130), "no flow was judged");
}

#[test]
fn probes_that_were_asked_for_count() {
    let Some(mut lab) = lab("asked", Shape::Aks, "seed-deny") else { return };
    let trace = start(&mut lab, "--dst pls-app --src probe -o json --count 1 --duration 40s");
    assert_eq!(send(&lab, &[Client::HealthProbe]), [ClientSaw::Timeout]);
    let traced = trace.finish();
    assert_eq!(traced.flow(Client::HealthProbe)["verdict"], "dropped");
    assert_eq!((traced.code, traced.probes().len()), (Some(1), 1), "{}", traced.stdout);
}

#[test]
fn what_the_pod_could_not_reach_after_it_accepted() {
    let Some(mut lab) = lab("egress", Shape::Aks, "seed-egress-only") else { return };
    let trace = start(&mut lab, "--dst pls-app -o json --duration 60s");
    assert_eq!(send(&lab, &[Client::ConsumerFirstNatIp]), [ClientSaw::Ok]);
    assert_eq!(send(&lab, &[Client::AppToNatIp, Client::AppToVm]), [ClientSaw::Timeout, ClientSaw::Ok]);
    trace.signal("INT");
    let traced = trace.finish();
    let drops = traced.with_schema("plsprobe.trace.egress/1");
    assert_eq!(drops.len(), 1, "{}", traced.stdout);
    let ends = (&drops[0]["tuple"]["daddr"], &drops[0]["accepted"]["saddr"]);
    assert_eq!(ends, (&"10.224.0.8".into(), &"10.224.0.8".into()), "{drops:#?}");
    assert_eq!(drops[0]["reason"]["code"], 133);
    assert_eq!(traced.code, Some(0), "the flow that was asked about was let in");
}
