//! What every source ends in: assembled, asked, printed. None of it may fail, whatever the source held.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use probe_model::cilium::Direction;
use probe_model::cilium::lb::LoadBalancer;
use probe_model::explain::{advise, explain};
use probe_model::simulate::Question;
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::World;
use probe_user::render;
use probe_user::sources::assemble::assemble;
use probe_user::sources::raw::RawNode;

/// Assembles `node`, dumps it in every form, and asks about it.
pub(crate) fn node(node: &RawNode) {
    let world = assemble(node);
    dump(node, &world);
    ask(&world);
}

fn dump(node: &RawNode, world: &World) {
    use render::dump;
    let dumps = [
        dump::policy(world, None),
        dump::ipcache(world),
        dump::endpoints(world, None),
        dump::services(world),
        dump::conntrack(world),
        dump::nat(node),
        dump::metrics(node),
        dump::policystats(world, None),
        dump::node(node),
        dump::tunnel(node),
        dump::auth(node),
        dump::affinity(node, world),
        dump::fragments(node),
        dump::source_ranges(node, world),
    ];
    for dump in dumps.into_iter().flatten() {
        dump.text(&mut io::sink()).expect("a sink takes everything");
        dump.json(&mut io::sink()).expect("a sink takes everything");
    }
}

/// Explains a handful of packets, so that every map is looked into.
pub(crate) fn ask(world: &World) {
    for question in questions(world) {
        let explanation = explain(world, &question);
        let advice = Some(advise(world, &explanation));
        render::explanation::text(world, &explanation, advice.as_ref(), &mut io::sink())
            .expect("a sink takes everything");
        render::explanation::json(world, &explanation, advice.as_ref(), &mut io::sink())
            .expect("a sink takes everything");
    }
}

fn questions(world: &World) -> Vec<Question> {
    let outside = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
    let endpoints = world.endpoints.values().flat_map(|endpoint| &endpoint.addresses).copied();
    let endpoints: Vec<_> = endpoints.take(2).collect();
    let links = world.links.iter().flatten().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr);
    let frontends = world.lb.iter().flat_map(LoadBalancer::frontends);
    let frontends = frontends.map(|frontend| (frontend.key.address, frontend.key.dport));
    let mut targets: Vec<_> = endpoints.iter().map(|address| (*address, 80)).collect();
    targets.extend(links.take(2).map(|address| (address, 30_080)));
    targets.extend(frontends.take(2));
    targets.push((Ipv6Addr::LOCALHOST.into(), 80));
    let mut questions = Vec::new();
    for (daddr, dport) in targets {
        for saddr in endpoints.iter().copied().take(1).chain([outside]) {
            let tuple = Tuple { saddr, daddr, sport: 40_000, dport, protocol: Protocol::TCP };
            questions.push(Question::new(tuple));
            // One question costs as much as all decoding, so the rarer ones are asked once.
            if questions.len() == 1 {
                questions.push(Question { direction: Some(Direction::Ingress), ..Question::new(tuple) });
                questions.push(Question::new(Tuple { protocol: Protocol::ICMP, ..tuple }));
            }
        }
    }
    questions
}
