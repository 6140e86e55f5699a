//! Every scenario, in every shape it makes sense in: each client sees what the scenario says.
use probe_lab::addresses::{NAT_IPS, ROUTER};
use probe_lab::scenario::{Client, SCENARIOS, Scenario};
use probe_lab::{ClientSaw, Lab, LabOptions, Shape};

fn up(scenario: &Scenario, shape: Shape) -> Option<Lab> {
    if let Some(why) = probe_lab::standin::unavailable() {
        fixtures::skip!("{why}");
        return None;
    }
    let instance = format!("t{}-{}-{shape}", std::process::id(), scenario.name);
    let options = LabOptions { instance, shape, scenario: scenario.name.to_owned() };
    Some(Lab::up(&options).unwrap_or_else(|err| panic!("{}, {shape}: {err:#}", scenario.name)))
}

/// What every client saw that it should not have seen.
fn surprises(scenario: &'static Scenario, shape: Shape) -> Vec<String> {
    let Some(lab) = up(scenario, shape) else { return Vec::new() };
    // At once: most of the time goes by waiting for answers that do not come.
    let lab = &lab;
    std::thread::scope(|scope| {
        let attempts =
            Client::ALL.map(|client| (client, scope.spawn(move || lab.probe(&scenario.probe(client)))));
        let wrong = attempts.into_iter().filter_map(|(client, attempt)| {
            let (saw, expected) = (attempt.join().unwrap(), scenario.expected(client));
            let line = format!("{}, {shape}, {client}: saw {saw:?}, expected {expected:?}", scenario.name);
            (saw.ok() != Some(expected)).then_some(line)
        });
        wrong.collect()
    })
}

fn check(shape: Shape) {
    let with_shape = SCENARIOS.iter().filter(|scenario| scenario.shapes.contains(&shape));
    let surprises: Vec<_> = with_shape.flat_map(|scenario| surprises(scenario, shape)).collect();
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

#[test]
fn clients_see_what_the_scenarios_say_on_managed_aks() {
    check(Shape::Aks);
}

#[test]
fn clients_see_what_the_scenarios_say_with_host_routing() {
    check(Shape::Kpr);
}

#[test]
fn clients_see_what_the_scenarios_say_behind_kube_proxy() {
    check(Shape::KubeProxy);
}

/// A policy that changes while the lab is up: the same client, another answer.
#[test]
fn a_changed_policy_decides_the_next_packet() {
    for shape in [Shape::Aks, Shape::Kpr] {
        let Some(mut lab) = up(Scenario::named("allow-nat-ip").unwrap(), shape) else { return };
        let saw = |lab: &Lab| lab.probe(&Client::ConsumerFirstNatIp.probe()).unwrap();
        assert_eq!(saw(&lab), ClientSaw::Ok, "{shape}");
        lab.change_policy("seed-deny").unwrap();
        assert_eq!(saw(&lab), ClientSaw::Timeout, "{shape}");
        lab.change_policy("none").unwrap();
        assert_eq!(saw(&lab), ClientSaw::Ok, "{shape}");
        assert!(lab.change_policy("kube-proxy").is_err());
    }
}

/// The pod sees the NAT IP, or behind kube-proxy the node; never the consumer.
#[test]
fn the_pod_sees_whom_the_shape_lets_it_see() {
    let none = Scenario::named("none").unwrap();
    for (shape, expected) in [(Shape::Aks, NAT_IPS), (Shape::Kpr, NAT_IPS), (Shape::KubeProxy, [ROUTER; 2])] {
        let Some(lab) = up(none, shape) else { return };
        for (client, expected) in
            [Client::ConsumerFirstNatIp, Client::ConsumerSecondNatIp].into_iter().zip(expected)
        {
            let probed = lab.probe_both_ends(&client.probe()).unwrap();
            assert_eq!(probed.saw, ClientSaw::Ok, "{shape}");
            assert_eq!(probed.server_saw.map(|peer| *peer.ip()), Some(expected), "{shape}");
        }
    }
}
