//! `plsprobe causes`, as an operator runs it.

use std::process::Command;

use expect_test::{Expect, expect};

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_plsprobe")).arg("causes").args(args).output();
    let output = output.expect("plsprobe runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn check(args: &[&str], code: i32, expected: &Expect) {
    let (found, stdout, stderr) = run(args);
    expected.assert_eq(&format!("{stdout}{stderr}"));
    assert_eq!(found, Some(code), "exit code");
    assert!(stdout.is_empty() || stderr.is_empty(), "data belongs to stdout, the rest to stderr");
}

#[test]
fn the_list() {
    let expected = expect![[r#"
        policy                                                             detected by
          PLS-01  Default deny: no ingress rule admits Private Link        packets, maps, agent
          PLS-02  The rule names addresses that the pod never sees         packets, maps, kubernetes
          PLS-03  kube-proxy hides the NAT IP before policy runs           netfilter, maps, packets
          PLS-04  Pod on another node (tunnel): judged as world            packets, maps
          PLS-05  Pod on another node (native): judged as remote-node      packets, maps
          PLS-06  Works through some nodes only                            packets, maps, kubernetes
          PLS-07  The load balancer's health probe is denied by policy     packets, maps
          PLS-26  The rule names the service's port, not the pod's         maps, packets
          PLS-27  endPort is ignored by Cilium before 1.16                 kubernetes, maps, agent
          PLS-29  A policy was replaced, or selects more than meant        kubernetes
          PLS-30  An egress policy cuts off what the application needs     maps, packets
          PLS-34  A deny rule forbids it                                   maps, packets, agent
          PLS-35  The HTTP or authentication part of a policy refuses      packets, maps, agent
          PLS-47  The NAT IP is in the rule's except list                  maps, kubernetes

        load balancer and probes                                           detected by
          PLS-10  PROXY on one service breaks its siblings' probes         azure, packets
          PLS-11  The node's health check gets a PROXY header              azure, kubernetes, packets
          PLS-12  Traffic policy Local, and no ready pod on this node      maps, kubernetes, netfilter
          PLS-13  The HTTP probe asks for a path that does not answer 200  azure, packets, kubernetes
          PLS-14  The node's firewall drops the probe or the data          netfilter, maps, packets
          PLS-15  The IPv6 health probe is not answered                    kubernetes, packets
          PLS-16  Public load balancer with floating IP                    azure, kubernetes, packets
          PLS-17  The private endpoint's connection is not approved        azure, packets
          PLS-18  The Private Link service was never created               kubernetes, azure
          PLS-19  The Private Link service was deleted and made anew       -
          PLS-20  The NAT IPs changed, the rule did not                    azure, maps, packets
          PLS-21  The backend pool lists IP addresses, not NICs            azure
          PLS-22  The NAT IP lies in the pods' address range               kubernetes, azure, packets
          PLS-23  loadBalancerSourceRanges leaves the NAT IP out           maps, netfilter
          PLS-24  A network security group drops the packets               azure
          PLS-36  The connection was idle too long                         packets, azure
          PLS-37  NAT ports are exhausted or reused too soon               azure, packets
          PLS-43  ClientIP affinity sends all consumers to few pods        kubernetes, maps, packets
          PLS-51  Nothing leaves the consumer's network                    azure, packets

        node and CNI                                                       detected by
          PLS-25  ip-masq-agent rewrites the source of incoming packets    netfilter, packets
          PLS-38  Cilium's connection tables are full or stale             maps, packets
          PLS-39  The kernel's connection table is full                    netfilter, packets
          PLS-40  Address ranges overlap                                   maps, kubernetes, azure
          PLS-41  No ready pod behind the service, or nobody listens       maps, packets, kubernetes
          PLS-42  The node does not know the load balancer's address       maps, netfilter, packets
          PLS-44  Large packets vanish (MTU)                               packets
          PLS-45  Cilium's gateway reports no endpoints to the probe       kubernetes
          PLS-46  The agent has not installed the policy on this node      agent, maps, kubernetes
          PLS-48  The client is inside the cluster                         packets, kubernetes

        application                                                        detected by
          PLS-08  The application does not understand the PROXY header     packets, azure
          PLS-09  The application wants a PROXY header and gets none       packets, azure
          PLS-50  The network is fine; the application does not answer     packets

        passes although                                                    detected by
          PLS-28  An egress-only policy leaves ingress open                maps, agent
          PLS-31  A rule admits far more than Private Link                 maps, agent, kubernetes
          PLS-32  The pod is outside NetworkPolicy, or behind an ingress   kubernetes, maps
          PLS-33  Policy is not enforced on this pod                       agent, maps, kubernetes
          PLS-49  Another approved consumer looks the same                 azure, packets

        answer
          ALLOWED               A policy admits it
          OPEN                  No policy selects the pod for this direction
          NO-POLICY             No policy is asked on its way through this node
          REPLY                 It answers a connection that is open
          RELATED               An ICMP error about a connection that is open
          ALLOW-LOCALHOST       Cilium always lets the node reach its own pods
          AUDIT                 Policy audit mode lets it through
          INCONCLUSIVE          A fact that decides is not known
          DROP-n                Cilium dropped it for a reason that is no root cause of its own

        assumption
          config-by-pins        The agent's configuration is taken from its maps
          locally-sent          The source is this node's own address
          host-mark             Assumed that Cilium marks what the host sends
          netfilter-unknown     The node's netfilter rules are not known
          conntrack-unknown     Judged as a new connection
          audit-mode            Audit mode lets through what would be dropped
          policy-pending        The datapath has an older policy than the agent wants
          packets-filtered      Only packets that match the filter were seen
          hook-gap              For a time a hook saw nothing

        outcome
          answered              An answer was seen
          answer-lost           Somebody answered, and the answer did not arrive
          refused               A TCP reset or an ICMP error came back
          dropped-by-cilium     Cilium said that it dropped the packet
          dropped-by-kernel     The kernel freed the packet as dropped
          no-answer             It was delivered, and nothing came back
          silent                It was seen, and then nothing more of it

        gap
          tc-program            Another tc program may have taken the packet
          cilium-unread         Cilium may have dropped it, unheard
          host-stack            The host's network stack may have dropped it
          netfilter-queue       A program that reads netfilter's queue may hold it
          pod-stack             The pod's network stack may have dropped it
          other-node            It went on to another node
          device                The interface dropped it or did not send it
          listen-queue          The application's queue of new connections may be full
          application           The application did not answer
          unwatched             It went on where no hook is attached
          other-interface       The answer left by another interface
          beyond-node           It left this node and was lost behind it
          lost-record           plsprobe's own record may be lost

        kernel drop
          netfilter             Dropped by netfilter (iptables, nftables)
          routing               Dropped by routing
          rp-filter             Dropped by the reverse path filter
          routing-or-rp-filter  Dropped by routing or the reverse path filter
          mtu                   Larger than the next link carries
          tc-ingress            Dropped by a tc program on its way in
          tc-egress             Dropped by a tc program on its way out
          xdp                   Dropped by an XDP program
          socket-program        Dropped by a BPF program of a socket or cgroup
          neighbor              The next hop's link-layer address is not known
          fragments             A fragment without the rest
          no-socket             Nobody listens on the port
          listen-overflow       The listener's queue of connections is full
          tcp-state             TCP does not take it in this state
          overload              A queue or memory is full
          other-host            Its link-layer address is another host's
          malformed             The packet is malformed
          ipsec-policy          Dropped by IPsec policy
          security-module       Dropped by a security module
          ipv6-disabled         IPv6 is switched off there
          tunnel                Dropped for its tunnel header

        `-`: plsprobe does not tell it yet; its page says how to check by hand.
        `plsprobe causes CODE`: what proves it, what it is mistaken for, and the fix.
    "#]];
    check(&[], 0, &expected);
}

#[test]
fn a_page() {
    let expected = expect![[r#"
        PLS-26: The rule names the service's port, not the pod's
        policy, error
        detected by plsprobe, from maps, packets

        SYMPTOM
          Consumers time out; the rule names the right addresses. The drop has reason
          133, on a port other than the one in the rule: 8080, say, where the rule and
          the service say 80.

        WHAT PROVES IT
          Policy is asked after the service's translation: it sees the port that the pod
          listens on (`targetPort`), not the service's port nor the node port.

          plsprobe shows the translation, the port that policy saw, and the entry that
          differs in the port alone.

            plsprobe explain --src NAT_IP --dst LB_IP:PORT
            plsprobe dump policy --endpoint EP
            kubectl -n NS get svc SVC -o jsonpath='{.spec.ports}'

        OFTEN MISTAKEN FOR
          - PLS-01: no rule admits the sender on any port.
          - PLS-27: the rule has a range of ports, and Cilium takes only the first.
          - PLS-41: the port is admitted, and nobody listens there.

        FIX
          Name the pod's port, or the container port's name, in the rule:

            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: allow-pls
              namespace: NS
            spec:
              podSelector:
                matchLabels:
                  app: APP
              policyTypes: [Ingress]
              ingress:
              - from:
                - ipBlock:
                    cidr: NAT_SUBNET
                ports:
                - protocol: TCP
                  port: TARGETPORT

        ASSUMPTIONS
          A named port is looked up in each pod's own container ports; a pod that does
          not name it does not get the rule.

        IN CAPITALS
          APP           the pods' label
          EP            the endpoint's number, from `plsprobe dump endpoints`
          LB_IP         the load balancer's frontend address
          NAT_IP        an address of the Private Link service
          NAT_SUBNET    the Private Link service's subnet, as 10.224.5.0/24
          NS            the namespace
          PORT          the service's port
          SVC           the service
          TARGETPORT    the port that the pod listens on
    "#]];
    check(&["PLS-26"], 0, &expected);
}

#[test]
fn a_page_is_found_however_it_is_typed() {
    let page = run(&["PLS-03"]);
    for typed in ["3", "03", "pls-3", "PLS-03"] {
        assert_eq!(run(&[typed]), page, "{typed}");
    }
}

#[test]
fn a_drop_has_its_own_title_and_the_page_of_all() {
    let (code, page, _) = run(&["drop-155"]);
    assert_eq!(code, Some(0));
    let head: Vec<_> = page.lines().take(2).collect();
    assert_eq!(head, ["DROP-155: conntrack could not take the flow: map full or no memory", "answer, error"]);
    assert!(page.contains("165, 202, 203"));
}

#[test]
fn a_page_fits_a_terminal() {
    let (_, list, _) = run(&[]);
    let wide: Vec<_> = list.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    for code in 1..=51 {
        let (_, page, _) = run(&[&code.to_string()]);
        // Commands and YAML, which are indented further, are as long as they are.
        let prose = page.lines().filter(|line| !line.starts_with("    "));
        let wide: Vec<_> = prose.filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{code}: {wide:#?}");
    }
}

#[test]
fn json_has_every_code_and_a_page_its_sections() {
    let (_, list, _) = run(&["-o", "json"]);
    let codes: Vec<serde_json::Value> =
        list.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(codes.len() > 51, "{} codes", codes.len());
    assert!(codes.iter().all(|code| code["schema"] == "plsprobe.cause/1" && code["title"].is_string()));
    let (_, page, _) = run(&["PLS-51", "-o", "json"]);
    let page: serde_json::Value = serde_json::from_str(&page).expect("one object");
    assert_eq!((&page["code"], &page["detected"]), (&"PLS-51".into(), &true.into()));
    assert_eq!(page["seen_from"], serde_json::json!(["azure", "packets"]));
    let headings: Vec<_> =
        page["sections"].as_array().expect("sections").iter().map(|one| &one["heading"]).collect();
    assert_eq!(headings.first(), Some(&&"Symptom".into()));
    assert_eq!(headings.last(), Some(&&"Whom to ask".into()));
}

#[test]
fn an_unknown_code() {
    check(
        &["PLS-77"],
        2,
        &expect![[r#"
        plsprobe: unknown code `PLS-77`; perhaps PLS-07 (The load balancer's health probe is denied by policy), PLS-17 (The private endpoint's connection is not approved), PLS-27 (endPort is ignored by Cilium before 1.16), PLS-37 (NAT ports are exhausted or reused too soon); `plsprobe causes` lists all
    "#]],
    );
}
