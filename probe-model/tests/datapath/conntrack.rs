//! 2.8 and 6.1: what conntrack lets by, and what it does not.

use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::family::Family;
use probe_model::cilium::policy::PolicyLayout;
use probe_model::explain::{Code, Verdict, explain};
use probe_model::simulate::{Destination, Outcome, Step};

use super::{APP, allow, both, outcome, tcp, way};

const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;
const DENIED: Outcome = Outcome::Dropped(DropReason::POLICY);

/// 2.8: "REPLY, RELATED: no"; 6.1: "reverse direction first (⇒ REPLY), then forward (⇒ ESTABLISHED)"; "NEW, ESTABLISHED:
/// yes — every packet, so a policy change cuts existing connections".
#[test]
fn answers_pass_and_open_connections_are_judged() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        allow(&mut world, LAYOUT, APP, &[]);
        let request = tcp(net.client, net.app, 8080);
        let answer = tcp(net.app, net.client, 0);
        let answer = probe_model::simulate::Question { tuple: request.tuple.reversed(), ..answer };
        assert_eq!(outcome(&world, &request), DENIED);
        assert_eq!(outcome(&world, &answer), DENIED);
        let entry = CtTuple::ingress(request.tuple);
        net.track(&mut world, entry, CtEntry::default());
        assert_eq!(outcome(&world, &request), DENIED, "an established connection is judged again");
        let passed = way(&world, &answer);
        assert_eq!(passed.outcome, Outcome::Allowed(Destination::Judged));
        assert_eq!(passed.steps.last(), Some(&Step::Reply(entry)));
        // The other way round: what the pod began is answered from outside.
        let began = tcp(net.app, net.client, 443);
        net.track(&mut world, CtTuple::egress(began.tuple), CtEntry::default());
        let answer = probe_model::simulate::Question { tuple: began.tuple.reversed(), ..began };
        assert_eq!(outcome(&world, &answer), Outcome::Allowed(Destination::Endpoint(APP)));
        assert_eq!(outcome(&world, &began), DENIED);
    });
}

/// 6.1, as recorded: an echo request has its identifier where the client's port is.
#[test]
fn an_answer_to_a_ping_passes() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        allow(&mut world, LAYOUT, APP, &[]);
        let reply = if net.family == Family::V4 { 0 } else { 129 };
        let answer = net.icmp_question(net.app, net.client, (reply, 0));
        assert_eq!(outcome(&world, &answer), DENIED);
        let request = probe_model::tuple::Tuple { sport: 5229, ..answer.tuple.reversed() };
        let entry = CtTuple::ingress(request);
        for other in [
            CtTuple { flags: CtTuple::OUT, ..entry },
            CtTuple { nexthdr: 17, ..entry },
            CtTuple { daddr: net.remote_node, ..entry },
            CtTuple { flags: CtTuple::IN | CtTuple::RELATED, sport: 0, ..entry },
        ] {
            net.track(&mut world, other, CtEntry::default());
            assert_eq!(outcome(&world, &answer), DENIED, "{other}");
        }
        net.track(&mut world, entry, CtEntry::default());
        assert_eq!(way(&world, &answer).steps.last(), Some(&Step::Reply(entry)));
        let request = net.icmp_question(net.client, net.app, (if reply == 0 { 8 } else { 128 }, 0));
        assert_eq!(outcome(&world, &request), DENIED, "a ping is judged again");
    });
}

/// IPv4 and IPv6 do not meet.
#[test]
fn two_families_in_one_packet() {
    both(|net| {
        let world = net.world(LAYOUT);
        let other: std::net::IpAddr =
            if net.family == Family::V4 { "fd00::1" } else { "10.0.0.1" }.parse().expect("an address");
        let unknown = Outcome::Unknown(probe_model::simulate::Unknown::Nat46x64);
        assert_eq!(outcome(&world, &tcp(net.client, other, 80)), unknown);
        assert_eq!(outcome(&world, &tcp(other, net.app, 80)), unknown);
    });
}

/// 6.1: "ICMP error referring to a flow: as flow | | 0 | 0 | dir | 2", in the map of ICMP.
#[test]
fn icmp_errors_about_a_connection_pass() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        allow(&mut world, LAYOUT, APP, &[]);
        let (error, echo) = match net.family {
            Family::V4 => ((3, 1), (8, 0)),
            Family::V6 => ((1, 3), (128, 0)),
        };
        let to_pod = |icmp| net.icmp_question(net.client, net.app, icmp);
        let from_pod = |icmp| net.icmp_question(net.app, net.client, icmp);
        for question in [to_pod(error), from_pod(error)] {
            assert_eq!(outcome(&world, &question), DENIED);
        }
        // A connection from outside into the pod, which an error may concern on either side.
        let about = tcp(net.client, net.app, 8080).tuple;
        let about = probe_model::tuple::Tuple { sport: 0, dport: 0, protocol: net.icmp(), ..about };
        let entry = CtTuple { flags: CtTuple::IN | CtTuple::RELATED, ..CtTuple::ingress(about) };
        net.track(&mut world, entry, CtEntry::default());
        for question in [to_pod(error), from_pod(error)] {
            let passed = way(&world, &question);
            assert!(matches!(passed.outcome, Outcome::Allowed(_)), "{passed:?}");
            assert_eq!(passed.steps.last(), Some(&Step::Related(entry)));
        }
        for question in [to_pod(echo), from_pod(echo)] {
            assert_eq!(outcome(&world, &question), DENIED, "no error");
        }
        let explanation = explain(&world, &to_pod(error));
        assert_eq!((explanation.verdict, explanation.cause.code), (Verdict::Allowed, Code::Related));
        // An error about another peer's connection.
        assert_eq!(outcome(&world, &net.icmp_question(net.remote_node, net.app, error)), DENIED);
    });
}
