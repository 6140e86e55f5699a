//! What may differ between the answers of two kernels to one scenario. All of it is here, each with its reason.
//!
//! Nothing else may: no verdict, no cause, no policy, no map entry, no hop and no order of them.

/// Something that differs from run to run or from kernel to kernel.
pub(crate) struct Rule {
    /// What is replaced, for people.
    pub(crate) what: &'static str,
    /// Why it may differ.
    pub(crate) why: &'static str,
    /// Replaces it in a whole answer, JSON or text.
    apply: fn(&str) -> String,
}

/// All rules, in the order in which they are applied.
pub(crate) const RULES: [Rule; 12] = [
    Rule {
        what: "hops seen by probes on the kernel's IP layer",
        why: "the host's kernel may refuse probes on functions; that a guest has them all, and sees there what a pod answers, is checked apart",
        apply: ip_layer,
    },
    Rule {
        what: "whether DNAT and SNAT are told apart",
        why: "a hop of the IP layer lies between the two; what they make of the packet together is compared",
        apply: rewrites,
    },
    Rule { what: "times", why: "an emulated machine is slow", apply: times },
    Rule {
        what: "ports that a kernel picked",
        why: "it picks them at random; each is replaced by its number in order of appearance, so that one port stays one port",
        apply: ports,
    },
    Rule {
        what: "numbers of interfaces and network namespaces, addresses of kernel functions",
        why: "they are the kernel's own; the interface's name is compared",
        apply: kernel_numbers,
    },
    Rule {
        what: "how often a packet was seen again, and how many packets, notifications and records there were; not how many were lost",
        why: "a client sends its SYN again after a second, and a slow machine answers later",
        apply: counts,
    },
    Rule {
        what: "counters of a policy entry, and whether conntrack had its entry already and so confirms a translation",
        why: "the maps are read at some moment of the flow",
        apply: moment_of_reading,
    },
    Rule {
        what: "by which means Cilium's notifications were seen, and whether kernel functions could be probed",
        why: "the host's kernel may refuse it; that a guest has every hook, and every verdict from a probe, is checked apart",
        apply: means,
    },
    Rule {
        what: "the number of the kernel's reason to free a packet",
        why: "the numbers shift from kernel to kernel; the reason's name is compared",
        apply: reason_numbers,
    },
    Rule {
        what: "the function that freed a packet, by the reason that newer kernels give there; what such a drop means",
        why: "before 5.17 the kernel gives no reason, and plsprobe names the function, which may have had another",
        apply: functions,
    },
    Rule {
        what: "packets of an answered flow that the kernel freed, in JSON",
        why: "that is what is left when sockets close, in an order that time decides; what some kernels call a drop others call consumed",
        apply: after_the_answer,
    },
    Rule {
        what: "what the pod could not reach after it had accepted a flow",
        why: "it tries when all flows that a trace counts have been sent: whether the trace still hears of it, time decides",
        apply: egress,
    },
];

/// The answer without what may differ.
pub(crate) fn normalize(answer: &str) -> String {
    RULES.iter().fold(answer.to_owned(), |text, rule| (rule.apply)(&text))
}

fn times(text: &str) -> String {
    const KEYS: [&str; 9] = [
        "answered_ns",
        "first_ns",
        "last_ns",
        "ktime_ns",
        "elapsed_ms",
        "first_record_ms",
        "request_ns",
        "after_ns",
        "idle_ns",
    ];
    let text = KEYS.iter().fold(text.to_owned(), |text, key| json_numbers(&text, key, |_| true));
    // In text a time is a word of its own and has a fraction.
    words(&text, |word| {
        let (whole, fraction) = word.split_once('.')?;
        (is_number(whole) && is_number(fraction)).then(|| "TIME".to_owned())
    })
}

/// The lab's one port from 1024 on that no kernel picked, the service's `NodePort`.
const NODE_PORT: &str = "32673";

fn ports(text: &str) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(':') {
        let (before, after) = rest.split_at(at + 1);
        let (port, tail) = after.split_at(digits(after));
        out.push_str(before);
        // `"sport":41914`, `10.0.0.143:41914`
        let is_port = [r#""sport":"#, r#""dport":"#].iter().any(|key| before.ends_with(key))
            || before.as_bytes().iter().rev().nth(1).is_some_and(u8::is_ascii_digit);
        if is_port && port != NODE_PORT && port.parse::<u16>().is_ok_and(|port| port > 1023) {
            let known = seen.iter().position(|other| *other == port);
            let number = known.unwrap_or_else(|| {
                seen.push(port);
                seen.len() - 1
            });
            out.push_str("PORT");
            out.push_str(&number.to_string());
        } else {
            out.push_str(port);
        }
        rest = tail;
    }
    out + rest
}

fn kernel_numbers(text: &str) -> String {
    // 0 is no interface and no namespace.
    let text = json_numbers(text, "ifindex", |number| number != "0");
    let text = json_numbers(&text, "netns", |number| number != "0");
    between(&text, r#""location":""#, "\"", |_| Some("ADDRESS".to_owned()))
}

fn counts(text: &str) -> String {
    const KEYS: [&str; 10] = [
        "count",
        "made",
        "retransmissions",
        "after_decision",
        "matched",
        "only_counted",
        "seen",
        "syn_again_after_decision",
        "read",
        "received",
    ];
    const WORDS: [&str; 5] =
        [" seen, ", " packets passed our hooks", " matched, ", " SYNs came again later", " received, "];
    let text = KEYS.iter().fold(text.to_owned(), |text, key| json_numbers(&text, key, |_| true));
    let text = numbers_before(&text, " of them only counted").replace(" (N of them only counted)", "");
    let text = WORDS.iter().fold(text, |text, word| numbers_before(&text, word));
    // `Policy denied (133) 2 times`, `none seen; SYN sent again once`
    let text = numbers_before(&text, " times").replace("; SYN sent again once", "");
    text.replace("; SYN sent again N times", "").replace(" N times", "")
}

fn moment_of_reading(text: &str) -> String {
    let text = json_numbers(text, "bytes", |_| true);
    let text = json_numbers(&text, "packets", |_| true);
    let text = numbers_before(&text, " packets so far");
    let text = text
        .replace(" (confirmed by cilium_ct4_global)", "")
        .replace(" (confirmed by nf_conntrack)", "")
        .replace(r#""confirmed_by":null"#, r#""confirmed_by":{}"#);
    let text = between(&text, r#""confirmed_by":{"#, "}", |_| Some("ENTRY OR NONE".to_owned()));
    let text = text.replace(r#""kept_by":null"#, r#""kept_by":"""#);
    between(&text, r#""kept_by":""#, "\"", |_| Some("ENTRY OR NONE".to_owned()))
}

/// Kernel functions that plsprobe probes.
const PROBED: [&str; 7] = [
    "bpf_skb_event_output",
    "ip_rcv",
    "ipv6_rcv",
    "ip_forward",
    "ip6_forward",
    "ip_local_deliver",
    "ip6_input",
];

fn means(text: &str) -> String {
    let text = between(text, r#""source":{"by":""#, "\"", |_| Some("MEANS".to_owned()));
    let text = between(&text, "told by Cilium's own notification (", ")", |_| Some("MEANS".to_owned()));
    let text = between(&text, "from Cilium's own notifications by ", ";", |_| Some("MEANS".to_owned()));
    // Their state in the list of hooks.
    let text = between(&text, r#"{"detail":""#, "}", |hook| {
        let is_this = |name: &&str| hook.contains(&format!(r#""place":"{name}""#));
        PROBED.into_iter().find(is_this).map(str::to_owned)
    });
    between(&text, "\nhooks     ", "\n", |hooks| {
        // `11 attached of 18; not ip_rcv, ipv6_rcv: fentry: …; kprobe: …`
        let lists = hooks.split("; not ").skip(1).map(|list| list.split(": ").next().unwrap_or(list));
        let refused = lists.flat_map(|list| list.split(", ")).filter(|name| PROBED.contains(name)).count();
        let (attached, wanted) = hooks.split(';').next()?.split_once(" attached of ")?;
        let (attached, wanted): (usize, usize) = (attached.parse().ok()?, wanted.parse().ok()?);
        (attached + refused == wanted).then(|| "ALL BUT PROBES".to_owned())
    })
}

fn reason_numbers(text: &str) -> String {
    json_list(text, "kernel_drops", |drop| Some(json_numbers(drop, "reason", |_| true)))
}

/// Functions that free a packet, and the reason that kernels from 5.17 on give there.
const FREED_IN: [(&str, &str); 4] = [
    ("__dev_queue_xmit", "TC_EGRESS"),
    ("__netif_receive_skb_core", "TC_INGRESS"),
    ("sk_stream_kill_queues", "QUEUE_PURGE"),
    ("tcp_v4_rcv", "NO_SOCKET"),
];

fn functions(text: &str) -> String {
    let named = |text: String, (function, reason): &(&str, &str)| {
        let text = text.replace(&format!("no reason given, in {function}\""), &format!("{reason}\""));
        text.replace(&format!("no reason given, in {function}\n"), &format!("{reason}\n"))
    };
    let text = FREED_IN.iter().fold(text.to_owned(), named);
    json_list(&text, "kernel_drops", |drop| {
        let is_named = |(_, reason): &(&str, &str)| drop.contains(&format!(r#""name":"{reason}""#));
        let is_unsure = FREED_IN.iter().any(is_named);
        Some(if is_unsure {
            between(drop, r#""cause":"#, ",", |_| Some("ANY".to_owned()))
        } else {
            drop.to_owned()
        })
    })
}

fn after_the_answer(text: &str) -> String {
    let answered = |line: &str| line.contains(r#""outcome":{"outcome":"answered"}"#);
    let lines = text
        .split_inclusive('\n')
        .map(|line| if answered(line) { json_list(line, "kernel_drops", |_| None) } else { line.to_owned() });
    lines.collect()
}

fn egress(text: &str) -> String {
    const PARTS: [&str; 2] = ["plsprobe.trace.egress/1", " on its way out of the pod, "];
    let is_other =
        |line: &&str| !PARTS.iter().any(|part| line.contains(part)) && !line.starts_with("egress    ");
    let text: String = text.split_inclusive('\n').filter(is_other).collect();
    json_numbers(&text, "egress_drops", |_| true)
}

fn ip_layer(text: &str) -> String {
    const POINTS: [&str; 3] = ["IpReceive", "IpForward", "IpDeliver"];
    const PLACES: [&str; 6] = [
        "stack received ",
        "stack forwarded ",
        "stack delivered ",
        "pod received ",
        "pod forwarded ",
        "pod delivered ",
    ];
    let elsewhere = |hop: &str| {
        let is_there = |point: &&str| hop.contains(&format!(r#""point":"{point}""#));
        (!POINTS.iter().any(is_there)).then(|| hop.to_owned())
    };
    let text = json_list(text, "hops", elsewhere);
    let text = json_list(&text, "replies", elsewhere);
    let text = json_list(&text, "first_bytes", elsewhere);
    PLACES.iter().fold(text, |text, place| without_hop(&text, place))
}

/// Takes rewrites together that follow one another: from the first's `from` to the last's `to`.
fn rewrites(text: &str) -> String {
    let text = text.replace(", then SNAT ", " and SNAT ");
    between(&text, r#""rewrites":["#, "]", |list| {
        let any = |key: &str| list.contains(&format!(r#""{key}":true"#));
        let from = list.split_once(r#""from":"#)?.1.split_inclusive('}').next()?;
        let to = list.rsplit_once(r#""to":"#)?.1.split_inclusive('}').next()?;
        Some(format!(r#"{{"dnat":{},"from":{from},"snat":{},"to":{to}}}"#, any("dnat"), any("snat")))
    })
}

/// Text without the hops `PLACE TIME`, which ` > ` parts.
fn without_hop(text: &str, place: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(place) {
        let tail = tail.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if let Some(head) = head.strip_suffix(" > ") {
            out.push_str(head);
            rest = tail;
        } else if let Some(tail) = tail.strip_prefix(" > ") {
            out.push_str(head);
            rest = tail;
        } else {
            out.push_str(head);
            out.push_str("none of ours saw it");
            rest = tail.strip_prefix(" ms").unwrap_or(tail);
        }
    }
    out + rest
}

/// Changes each object of `"key":[…]`, or takes it away. No list and no bracket is inside the objects.
fn json_list(text: &str, key: &str, change: impl Fn(&str) -> Option<String>) -> String {
    between(text, &format!(r#""{key}":["#), "]", |list| {
        Some(objects(list).into_iter().filter_map(&change).collect::<Vec<_>>().join(","))
    })
}

/// The objects of a list, which commas part.
fn objects(list: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = list.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.filter(|object| !object.is_empty()).collect()
}

/// Replaces the number of each `"key":NUMBER`; null stays, as it says that there is none.
fn json_numbers(text: &str, key: &str, wanted: impl Fn(&str) -> bool) -> String {
    let key = format!(r#""{key}":"#);
    let mut parts = text.split(&key);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, tail) = part.split_at(digits(part));
        out.push_str(&key);
        out.push_str(if !number.is_empty() && wanted(number) { "N" } else { number });
        out.push_str(tail);
    }
    out
}

/// Replaces the number that stands before each `suffix`.
fn numbers_before(text: &str, suffix: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split(suffix).peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            out.push_str(part);
            break;
        }
        let kept = part.trim_end_matches(|c: char| c.is_ascii_digit());
        out.push_str(kept);
        out.push_str(if kept.len() < part.len() { "N" } else { "" });
        out.push_str(suffix);
    }
    out
}

/// Changes what stands between each `before` and the next `after`; `None` leaves it.
fn between(text: &str, before: &str, after: &str, change: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(before) {
        let Some(end) = tail.find(after) else { break };
        out.push_str(head);
        out.push_str(before);
        out.push_str(&change(&tail[..end]).unwrap_or_else(|| tail[..end].to_owned()));
        rest = &tail[end..];
    }
    out + rest
}

/// Changes words, which blanks and line ends part.
fn words(text: &str, change: impl Fn(&str) -> Option<String>) -> String {
    let parts = text.split_inclusive([' ', '\n']).map(|part| {
        let word = part.trim_end_matches([' ', '\n']);
        change(word).map_or_else(|| part.to_owned(), |changed| changed + &part[word.len()..])
    });
    parts.collect()
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && digits(text) == text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(host: &str, guest: &str) {
        assert_eq!(normalize(host), normalize(guest));
    }

    #[track_caller]
    fn differ(host: &str, guest: &str) {
        assert_ne!(normalize(host), normalize(guest));
    }

    #[test]
    fn only_hops_of_the_ip_layer_are_left_out() {
        let host = "hops     eth0 in 0.000 > lxc1 to pod 0.046 ms\n";
        same(
            host,
            "hops     eth0 in 0.000 > stack received 0.011 > stack forwarded 0.020 > lxc1 to pod 0.346 > pod received 0.4 ms\n",
        );
        same("hops     none of ours saw it\n", "hops     pod received 0.000 > pod delivered 0.010 ms\n");
        differ(host, "hops     eth0 in 0.000 > stack received 0.011 ms\n");
        let hop =
            |point: &str| format!(r#"{{"ifindex":2,"point":"{point}","tuple":{{"sport":80}},"vlan":null}}"#);
        let hops = |hops: &[&str]| {
            let hops: Vec<_> = hops.iter().map(|point| hop(point)).collect();
            format!(r#"{{"hops":[{}],"replies":[]}}"#, hops.join(","))
        };
        same(
            &hops(&["UplinkIn", "PodIn"]),
            &hops(&["UplinkIn", "IpReceive", "IpForward", "PodIn", "IpDeliver"]),
        );
        differ(&hops(&["UplinkIn", "PodIn"]), &hops(&["UplinkIn", "IpReceive"]));
        differ(&hops(&["UplinkIn", "PodIn"]), &hops(&["PodIn", "UplinkIn"]));
    }

    #[test]
    fn rewrites_are_compared_by_what_they_come_to() {
        let one = |dnat: bool, from: &str, snat: bool, to: &str| {
            format!(r#"{{"dnat":{dnat},"from":{{"saddr":"{from}"}},"snat":{snat},"to":{{"saddr":"{to}"}}}}"#)
        };
        let all = |list: &[String]| format!(r#"{{"rewrites":[{}]}}"#, list.join(","));
        let both = all(&[one(true, "a", true, "c")]);
        same(&both, &all(&[one(true, "a", false, "b"), one(false, "b", true, "c")]));
        differ(&both, &all(&[one(true, "a", false, "b")]));
        differ(&both, &all(&[one(true, "a", false, "b"), one(false, "b", true, "d")]));
        differ(&both, &all(&[]));
        same("DNAT a to b and SNAT c to d", "DNAT a to b, then SNAT c to d");
    }

    #[test]
    fn times_are_not_compared_but_their_presence_is() {
        same(r#"{"answered_ns":12,"elapsed_ms":5}"#, r#"{"answered_ns":3456,"elapsed_ms":77}"#);
        differ(r#"{"answered_ns":12}"#, r#"{"answered_ns":null}"#);
        same("answered after 0.132 ms\nflows 5 in 9.7 s\n", "answered after 55.063 ms\nflows 5 in 15.1 s\n");
        differ("eth0 in 0.000 > lxc1 to pod 0.046 ms", "lxc1 to pod 0.000 > eth0 in 0.046 ms");
        differ("from 10.224.0.8 1", "from 10.224.0.9 1");
    }

    #[test]
    fn one_picked_port_stays_one_port() {
        same(r#"10.0.0.1:40000 {"sport":40000,"dport":80}"#, r#"10.0.0.1:1025 {"sport":1025,"dport":80}"#);
        differ("10.0.0.1:40000 > 10.0.0.1:40000", "10.0.0.1:40000 > 10.0.0.1:40001");
        differ(r#"{"dport":80}"#, r#"{"dport":443}"#);
        differ("10.224.0.4:32673", "10.224.0.4:30080");
        differ("TCP/8080", "TCP/8090");
        differ(r#"{"port":8080}"#, r#"{"port":8090}"#);
    }

    #[test]
    fn what_the_kernel_numbers_is_not_compared_but_none_is_not_one() {
        same(
            r#"{"ifindex":4,"location":"0xffff1","netns":4026532177}"#,
            r#"{"ifindex":5,"location":"0xffff2","netns":4026531840}"#,
        );
        differ(r#"{"ifindex":4,"interface":"eth0"}"#, r#"{"ifindex":0,"interface":"eth0"}"#);
        differ(r#"{"ifindex":4,"interface":"eth0"}"#, r#"{"ifindex":4,"interface":"lxc1"}"#);
    }

    #[test]
    fn packets_seen_again_are_not_compared_and_lost_ones_are() {
        same("none seen\n", "none seen; SYN sent again once\n");
        same("none seen\n", "none seen; SYN sent again 3 times\n");
        same("Policy denied (133); told", "Policy denied (133) 2 times; told");
        differ("Policy denied (133); told", "Policy denied (181) 2 times; told");
        let records = "records   41 seen, 0 lost, 0 missed; 37 packets passed our hooks, 33 matched, 3 SYNs came again later\n";
        same(records, &records.replace("41", "59").replace("33", "45").replace("3 SYNs", "11 SYNs"));
        same(records, &records.replace("33 matched", "933 matched (700 of them only counted)"));
        differ(records, &records.replace("0 lost", "1 lost"));
        same(r#"{"lost":0,"received":29}"#, r#"{"lost":0,"received":19}"#);
        differ(r#"{"lost":0,"received":29}"#, r#"{"lost":1,"received":29}"#);
    }

    #[test]
    fn the_moment_at_which_maps_were_read_is_not_compared() {
        same("(match L3-L4, 0 packets so far)", "(match L3-L4, 5 packets so far)");
        differ("(match L3-L4, 0 packets so far)", "(match L3, 0 packets so far)");
        same("to 10.0.0.143:80; eth0 in", "to 10.0.0.143:80 (confirmed by cilium_ct4_global); eth0 in");
        same("to 10.0.0.143:80; eth0 in", "to 10.0.0.143:80 (confirmed by nf_conntrack); eth0 in");
        same(r#"{"confirmed_by":null}"#, r#"{"confirmed_by":{"entry":"TCP OUT","map":"cilium_ct4_global"}}"#);
        same(r#"{"kept_by":null,"packets":0}"#, r#"{"kept_by":"TCP OUT a -> b service","packets":5}"#);
    }

    #[test]
    fn the_probe_may_be_refused_and_no_other_hook() {
        same("by its monitor socket; 1 received, 0 lost", "by its monitor socket; 2 received, 0 lost");
        same(
            "from Cilium's own notifications by its monitor socket; 0 lost",
            "from Cilium's own notifications by fentry; 0 lost",
        );
        let seven = "\nhooks     7 attached of 8; not bpf_skb_event_output: fentry: EPERM; kprobe: none\n";
        same(seven, "\nhooks     8 attached of 8\n");
        same(
            seven,
            "\nhooks     6 attached of 8; not bpf_skb_event_output: fentry: EPERM; not ip_rcv: fentry: EPERM\n",
        );
        same(
            seven,
            "\nhooks     6 attached of 8; not bpf_skb_event_output, ip_rcv: fentry: EPERM; kprobe: none\n",
        );
        differ(seven, "\nhooks     7 attached of 8; not eth0 ingress: EPERM\n");
        differ(seven, "\nhooks     6 attached of 8; not bpf_skb_event_output: EPERM, eth0 ingress: EPERM\n");
        let hook = |state, place| format!(r#"[{{"detail":"why","place":"{place}","state":"{state}"}}]"#);
        same(&hook("refused", "bpf_skb_event_output"), &hook("attached", "bpf_skb_event_output"));
        differ(&hook("refused", "eth0 ingress"), &hook("attached", "eth0 ingress"));
        same(
            r#"{"from":"cilium","source":{"by":"fentry"}}"#,
            r#"{"from":"cilium","source":{"by":"kprobe"}}"#,
        );
        differ(r#"{"from":"cilium","source":{"by":"fentry"}}"#, r#"{"from":"packets"}"#);
    }

    #[test]
    fn reasons_of_the_kernel_are_compared_by_name() {
        let drops = |ifindex: u32, name: &str, reason: u32| {
            let tuple = r#"{"sport":80}"#;
            format!(
                r#"{{"reason":133,"kernel_drops":[{{"ifindex":{ifindex},"name":"{name}","reason":{reason},"tuple":{tuple}}}]}}"#
            )
        };
        same(&drops(4, "TC_EGRESS", 62), &drops(4, "TC_EGRESS", 55));
        same(&drops(4, "TC_EGRESS", 62), &drops(4, "no reason given, in __dev_queue_xmit", 0));
        differ(&drops(4, "TC_EGRESS", 62), &drops(4, "TC_INGRESS", 62));
        differ(&drops(4, "TC_EGRESS", 62), &drops(4, "no reason given, in ip_rcv", 0));
        let answered =
            |drops: &str| format!(r#"{{"kernel_drops":[{drops}],"outcome":{{"outcome":"answered"}}}}"#);
        same(&answered(r#"{"name":"QUEUE_PURGE","tuple":{"sport":80}}"#), &answered(""));
        differ(&drops(4, "TC_EGRESS", 62), r#"{"reason":133,"kernel_drops":[]}"#);
        differ(r#"{"reason":133,"kernel_drops":[]}"#, r#"{"reason":181,"kernel_drops":[]}"#);
        same(
            "freed by the kernel, TC_EGRESS\n",
            "freed by the kernel, no reason given, in __dev_queue_xmit 2 times\n",
        );
    }

    #[test]
    fn what_a_pod_could_not_reach_may_or_may_not_be_heard_of() {
        same(
            "a\n{\"schema\":\"plsprobe.trace.egress/1\"}\n{\"egress_drops\":1}\n",
            "a\n{\"egress_drops\":0}\n",
        );
        let told = "10.0.0.143:40000 -> 10.224.0.8:80 TCP: dropped by Cilium on its way out of the pod, Policy denied (133)\n";
        same(told, "");
        differ("10.0.0.143:40000 -> 10.224.0.8:80 TCP: dropped by Cilium, Policy denied (133)\n", "");
    }

    #[test]
    fn the_verdict_and_what_it_rests_on_are_compared() {
        for (host, guest) in [
            (r#""verdict":"allowed""#, r#""verdict":"dropped""#),
            (r#""identity":16777217"#, r#""identity":2"#),
            (r#""match":"L3-L4""#, r#""match":"L3-only""#),
            (r#""code":"PLS-01""#, r#""code":"PLS-03""#),
            (r#""map":"cilium_policy_02686""#, r#""map":"cilium_policy_00340""#),
            (r#""dropped":4"#, r#""dropped":5"#),
        ] {
            differ(host, guest);
        }
    }
}
