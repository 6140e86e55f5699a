//! Conntrack by lookups: with the keys that a question asks for, its answer is the one of the whole maps.

use probe_model::cilium::ct::{CtEntry, CtLayout, CtTuple, ct_layouts};
use probe_model::cilium::family::Family;
use probe_model::cilium::policy::PolicyLayout;
use probe_model::explain::{Code, Explanation, explain};
use probe_model::simulate::{Question, simulate_noting};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::conntrack::Conntrack;
use probe_model::world::{ConfigSource, Missing, World};

use super::{Net, both, missing, tcp};

/// Marsaglia's xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Questions that conntrack has something to say of: every packet, its answer, an error and an answer to a ping.
fn questions(net: Net) -> Vec<Question> {
    let (error, reply) = if net.family == Family::V4 { ((3, 1), (0, 0)) } else { ((1, 3), (129, 0)) };
    let mut all = missing::questions(net);
    for question in all.clone() {
        let answer = question.tuple.reversed();
        let datagram = Tuple { protocol: Protocol::UDP, ..question.tuple };
        all.extend([answer, datagram, datagram.reversed()].map(Question::new));
    }
    let ends = [net.client, net.app, net.other, net.remote_pod];
    for (from, to) in ends.into_iter().flat_map(|from| ends.map(|to| (from, to))).filter(|(a, b)| a != b) {
        all.extend([error, reply].map(|icmp| net.icmp_question(from, to, icmp)));
    }
    all
}

/// Entries that a flow of the question may have, translated or not: each key is there or not, open or closing.
fn entries(net: Net, question: &Question, layout: CtLayout, random: &mut Random) -> Conntrack {
    let daddrs = [question.tuple.daddr, net.app, net.other, net.node, net.remote_pod];
    let ends = daddrs.into_iter().flat_map(|daddr| [question.tuple.dport, 8080].map(|dport| (daddr, dport)));
    let tuples = ends.map(|(daddr, dport)| Tuple { daddr, dport, ..question.tuple });
    let keys = tuples.flat_map(|tuple| [tuple, tuple.reversed()]).flat_map(|tuple| {
        let ingress = CtTuple::ingress(tuple);
        let about = CtTuple { flags: ingress.flags | CtTuple::RELATED, ..ingress };
        // The identifier of a ping is in the client's port.
        let ping = CtTuple { sport: 5229, ..ingress };
        [CtTuple::service(tuple), ingress, CtTuple::egress(tuple), about, ping]
    });
    let mut is_there = || random.below(4) == 0;
    let keys: Vec<_> = keys.filter(|_| is_there()).collect();
    keys.into_iter().map(|key| (key, entry(&key, layout, random))).collect()
}

fn entry(key: &CtTuple, layout: CtLayout, random: &mut Random) -> CtEntry {
    let flags = random.of(&[0, CtEntry::RX_CLOSING]);
    let mut entry = CtEntry { flags, rev_nat_index: random.of(&[0, 2, 3]), ..CtEntry::default() };
    if key.is_service() {
        // Its backend, one that is known or not.
        entry.head[8] = random.of(&[1, 2, 9]);
    } else if layout == CtLayout::PerDirection {
        // One packet of 60 bytes towards the endpoint.
        (entry.head[0], entry.head[8]) = (1, 60);
    }
    entry
}

/// The worlds in which something decides, one with several backends, and all with what the agent says or without.
fn worlds(net: Net, layout: PolicyLayout) -> Vec<(String, World)> {
    let mut several = net.world(layout);
    let mut service = net.service(80);
    service.backends = vec![(1, net.app), (2, net.other), (3, net.remote_pod)];
    net.serve(&mut several, &[service]);
    let mut all = missing::worlds(net, layout);
    all.push(("several backends", several));
    let variants = all.into_iter().flat_map(|(name, world)| {
        let mut by_pins = world.clone();
        by_pins.config.source = ConfigSource::Pins;
        by_pins.config.host_legacy_routing = true;
        [(name.to_owned(), world), (format!("{name}, by pins"), by_pins)]
    });
    variants.collect()
}

/// Why it is judged as a new connection, if that is an assumption.
fn assumption(explanation: &Explanation) -> Option<&str> {
    let mut caveats = explanation.caveats.iter();
    caveats.find(|caveat| caveat.code == Code::ConntrackUnknown).map(|caveat| caveat.text.as_str())
}

/// What lookups cannot tell, in the words of the caveat: a ping's identifier, and which layout entries have.
fn beyond_lookups(question: &Question, possible: &[CtLayout]) -> Option<&'static str> {
    let is_echo_reply = matches!(question.icmp, Some((0 | 129, _)));
    let is_ambiguous = possible.len() > 1;
    is_echo_reply.then_some("of it is not known").or(is_ambiguous.then_some("has a closing entry of it"))
}

#[derive(Debug, Default)]
struct Counts {
    questions: usize,
    lookups: usize,
    /// Without lookups it would be another answer.
    decided: usize,
    /// The caveat stays.
    assumed: usize,
}

fn compare(net: Net, layout: PolicyLayout, possible: &[CtLayout], random: &mut Random, counts: &mut Counts) {
    for (name, mut whole) in worlds(net, layout) {
        // One in four: of all there are 180,000.
        for question in questions(net).into_iter().filter(|_| random.below(4) == 0).collect::<Vec<_>>() {
            let connections = entries(net, &question, possible[0], random);
            let known = World { ct_layouts: possible.to_vec(), ..whole.clone() };
            let unread = World { conntrack: Conntrack::default(), conntrack6: Conntrack::default(), ..known };
            whole.ct_layouts = ct_layouts(connections.known(), possible);
            match net.family {
                Family::V4 => whole.conntrack = connections,
                Family::V6 => whole.conntrack6 = connections,
            }
            let mut looked_up = unread.clone();
            looked_up.look_up(
                |world| simulate_noting(world, &question).1,
                |key| {
                    counts.lookups += 1;
                    Ok::<_, ()>(whole.connection(key).entry().copied())
                },
            );
            let [all, some, none] = [&whole, &looked_up, &unread].map(|world| explain(world, &question));
            let answer = |of: &Explanation| (of.verdict.clone(), of.trajectories.clone(), of.caveats.clone());
            counts.questions += 1;
            counts.decided += usize::from(all.trajectories != none.trajectories);
            if let Some(assumed) = assumption(&some) {
                counts.assumed += 1;
                let why = beyond_lookups(&question, possible);
                assert!(
                    why.is_some_and(|why| assumed.contains(why)),
                    "{name}, {layout}, {question:?}: {assumed}"
                );
            } else {
                assert_eq!(answer(&some), answer(&all), "{name}, {layout}, {question:?}");
            }
            assert_eq!(assumption(&all), None, "{name}, {layout}, {question:?}: the whole maps are known");
        }
    }
}

#[test]
fn with_lookups_the_answer_is_the_one_of_the_whole_maps() {
    let counts = std::cell::RefCell::new(Counts::default());
    both(|net| {
        for (seed, layout) in (1..).zip(PolicyLayout::ALL) {
            let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ seed);
            for possible in [
                &[CtLayout::PerDirection][..],
                &[CtLayout::Joint],
                &[CtLayout::PerDirection, CtLayout::Joint],
            ] {
                compare(net, layout, possible, &mut random, &mut counts.borrow_mut());
            }
        }
    });
    let Counts { questions, lookups, decided, assumed } = counts.into_inner();
    let counts =
        format!("{questions} questions, {lookups} lookups, {decided} decided by them, {assumed} assumed");
    assert!(decided > questions / 20 && assumed < questions / 10, "{counts}");
    assert!(lookups < 3 * questions, "a handful each: {counts}");
}

/// A key that was not looked up is not absent: the answer says what it assumes until every one was.
#[test]
fn the_caveat_stays_until_every_key_was_looked_up() {
    both(|net| {
        let mut world = net.world(PolicyLayout::PrefixLength);
        (world.conntrack, world.conntrack6) = Default::default();
        let question = tcp(net.client, net.frontend, 80);
        let pin = net.family.pin("cilium_ct4_global");
        world.missing = vec![Missing { what: pin.clone(), why: "it is too large".to_owned() }];
        let mut asked = 0;
        loop {
            let keys = simulate_noting(&world, &question).1;
            let explanation = explain(&world, &question);
            let caveat = assumption(&explanation);
            let Some(key) = keys.first() else {
                assert_eq!(caveat, None);
                break;
            };
            let text = format!(
                "what conntrack has of it is not known (`{pin}`: it is too large): judged as a new connection"
            );
            assert_eq!(caveat, Some(text.as_str()), "{keys:?}");
            world.learn_connection(*key, None);
            asked += 1;
        }
        assert_eq!(asked, 2, "the service's entry, and the pod's as of an answer");
    });
}

/// A packet with any source port is a connection's first: conntrack is not asked, and nothing is assumed.
#[test]
fn a_question_without_a_source_port_asks_nothing() {
    both(|net| {
        let mut world = net.world(PolicyLayout::PrefixLength);
        (world.conntrack, world.conntrack6) = Default::default();
        let mut question = tcp(net.client, net.frontend, 80);
        question.tuple.sport = 0;
        assert!(simulate_noting(&world, &question).1.is_empty());
        assert_eq!(assumption(&explain(&world, &question)), None);
    });
}
