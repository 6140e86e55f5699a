//! Traffic from every client, and what each saw.
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use probe_lab::scenario::{Client, SCENARIOS, Scenario};
use probe_lab::{ClientSaw, Instance, Lab, LabOptions, Shape};

use super::background::check_up;
use super::interrupt::Interrupt;
use super::plsprobe::{self, Plsprobe};

/// The clients of the demo: who reaches the node from outside.
const FROM_OUTSIDE: [Client; 4] =
    [Client::HealthProbe, Client::ConsumerFirstNatIp, Client::ConsumerSecondNatIp, Client::PeeredVm];
/// Between the starts of two attempts, so that flows begin in the order of their table.
const STAGGER: Duration = Duration::from_millis(100);

/// A plsprobe that is asked for its verdict on every flow.
pub(super) struct Asked<'a> {
    pub(super) program: &'a Path,
    /// Whether it also traces meanwhile.
    pub(super) trace: bool,
}

/// Sends one attempt of every client through a lab that is up.
pub(super) fn traffic(instance: &Instance) -> Result<bool> {
    check_up(instance)?;
    for client in Client::ALL {
        say!("{client:<35} {}", instance.probe(&client.probe())?);
    }
    Ok(true)
}

/// `run SCENARIO`: says whether every client saw what the scenario says, and whether plsprobe says so too.
pub(super) fn run(
    name: &str,
    shape: Option<Shape>,
    instance: &str,
    plsprobe: Option<&Asked<'_>>,
) -> Result<bool> {
    let interrupt = Interrupt::listen()?;
    let scenarios: Vec<_> =
        if name == "all" { SCENARIOS.iter().collect() } else { vec![Scenario::named(name)?] };
    let mut as_expected = true;
    for scenario in scenarios {
        let shapes = match (shape, name) {
            (Some(shape), _) => vec![shape],
            (None, "all") => scenario.shapes.to_vec(),
            (None, _) => vec![scenario.shapes[0]],
        };
        for shape in shapes {
            as_expected &= run_one(scenario, shape, instance, plsprobe, &interrupt)?;
        }
    }
    Ok(as_expected)
}

fn run_one(
    scenario: &Scenario,
    shape: Shape,
    instance: &str,
    plsprobe: Option<&Asked<'_>>,
    interrupt: &Interrupt,
) -> Result<bool> {
    say!("{} ({shape}): {}", scenario.name, scenario.shows);
    let mut lab = up(scenario, shape, instance)?;
    let tracing = match plsprobe {
        Some(Asked { program, trace: true }) => {
            Some(Plsprobe::trace(program, &mut lab, Client::TO_APP.len())?)
        }
        _ => None,
    };
    let saw = attempts(&lab, &Client::ALL, interrupt)?;
    if let Some(tracing) = tracing {
        tracing.finish(interrupt)?;
    }
    let mut as_expected = true;
    for (client, saw) in saw {
        let mut words = vec![format!("  {client:<35} {saw:<8}")];
        let expected = scenario.expected(client);
        if saw != expected {
            words.push(format!("(expected {expected})"));
            as_expected = false;
        }
        if let Some(Asked { program, .. }) = plsprobe {
            let said = plsprobe::explain(program, &lab, client)?;
            words.push(said.verdict);
            if said.allowed != Some(saw != ClientSaw::Timeout) {
                words.push("(plsprobe disagrees)".to_owned());
                as_expected = false;
            }
        }
        say!("{}", words.join(" ").trim_end());
    }
    lab.down()?;
    Ok(as_expected)
}

/// `demo`: plsprobe's own output, then one line of what each client saw.
pub(super) fn demo(shape: Shape, instance: &str, program: &Path) -> Result<bool> {
    let interrupt = Interrupt::listen()?;
    let scenario = Scenario::named("allow-nat-ip")?;
    say!("The lab: a policy allows pls-app only from 10.224.0.8, one of two Private Link NAT IPs ({shape}).");
    let counted = FROM_OUTSIDE.iter().filter(|client| **client != Client::HealthProbe).count();
    say!("$ {}", Plsprobe::line(counted));
    let mut lab = up(scenario, shape, instance)?;
    let plsprobe = Plsprobe::trace(program, &mut lab, counted)?;
    let saw = attempts(&lab, &FROM_OUTSIDE, &interrupt)?;
    plsprobe.finish(&interrupt)?;
    say!("What the clients saw:");
    for (client, saw) in &saw {
        say!("  {client:<35} {saw}");
    }
    lab.down()?;
    Ok(saw.iter().all(|(client, saw)| *saw == scenario.expected(*client)))
}

fn up(scenario: &Scenario, shape: Shape, instance: &str) -> Result<Lab> {
    Lab::up(&LabOptions { instance: instance.to_owned(), shape, scenario: scenario.name.to_owned() })
}

/// One attempt of each, begun one shortly after the other: most of the time goes by waiting for answers that do not
/// come.
fn attempts(lab: &Lab, clients: &[Client], interrupt: &Interrupt) -> Result<Vec<(Client, ClientSaw)>> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for client in clients {
            ensure!(!interrupt.requested(), "interrupted");
            running.push((*client, scope.spawn(|| lab.probe(&lab.scenario().probe(*client)))));
            std::thread::sleep(STAGGER);
        }
        running
            .into_iter()
            .map(|(client, attempt)| match attempt.join() {
                Ok(saw) => Ok((client, saw?)),
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}
