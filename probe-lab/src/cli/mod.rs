//! The command line, one file per thing it does.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use probe_lab::scenario::{SCENARIOS, Scenario};
use probe_lab::{Instance, LabOptions, Shape};

/// A line on stdout, whose reader may have gone: then the command fails with that, instead of panicking.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*)?;
    }};
}

mod background;
mod interrupt;
mod load;
mod plsprobe;
mod run;

/// The test world of plsprobe: an AKS node behind a Private Link Service, in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "plsprobe-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Bring a lab up; it stays until `down`.
    Up(World),
    /// Take a lab down, or what is left of one.
    Down {
        /// Which lab.
        #[arg(long, default_value = "lab")]
        instance: String,
    },
    /// Send traffic from every client through a lab that is up, and print what each saw.
    Traffic {
        /// Which lab.
        #[arg(long, default_value = "lab")]
        instance: String,
    },
    /// Hold a steady load through a lab that is up, and prove that nothing was lost, changed, reset or doubled.
    Load(load::Args),
    /// Bring a scenario up, send traffic from every client, print what each saw, take it down.
    Run {
        /// Which scenario; `all` for every one in every shape.
        scenario: String,
        /// The shape of the datapath, instead of the scenario's first.
        #[arg(long)]
        shape: Option<Shape>,
        /// The lab's name.
        #[arg(long, default_value = "lab-run")]
        instance: String,
        /// A plsprobe to ask about every flow; its verdict is printed beside what the client saw.
        #[arg(long, env = "PLSPROBE")]
        plsprobe: Option<PathBuf>,
        /// Have that plsprobe trace meanwhile, too, and print what it says.
        #[arg(long, requires = "plsprobe")]
        trace: bool,
    },
    /// Show plsprobe's main job: the `allow-nat-ip` scenario, traced.
    Demo {
        /// The shape of the datapath.
        #[arg(long, default_value_t)]
        shape: Shape,
        /// The lab's name.
        #[arg(long, default_value = "lab-demo")]
        instance: String,
        /// The plsprobe that traces.
        #[arg(long, env = "PLSPROBE")]
        plsprobe: PathBuf,
    },
    /// List the scenarios.
    List,
    /// Own a lab until told to end; `up` starts this.
    #[command(hide = true)]
    Serve(World),
}

/// What to bring up.
#[derive(Debug, clap::Args)]
struct World {
    /// Which scenario; see `list`.
    #[arg(long, default_value = "none")]
    scenario: String,
    /// The shape of the datapath, instead of the scenario's first.
    #[arg(long)]
    shape: Option<Shape>,
    /// The lab's name: labs of different names do not meet.
    #[arg(long, default_value = "lab")]
    instance: String,
}

impl World {
    fn options(&self) -> Result<LabOptions> {
        let shape = match self.shape {
            Some(shape) => shape,
            None => Scenario::named(&self.scenario)?.shapes[0],
        };
        Ok(LabOptions { instance: self.instance.clone(), shape, scenario: self.scenario.clone() })
    }
}

/// Parses the command line and does what it says.
///
/// # Errors
///
/// Whatever could not be done. A client that did not see what its scenario says is no error but exit code 1.
pub(crate) fn run() -> Result<ExitCode> {
    let as_expected = match Cli::parse().command {
        Cmd::Up(world) => background::up(&world.options()?)?,
        Cmd::Serve(world) => background::serve(&world.options()?)?,
        Cmd::Down { instance } => down(&Instance::new(&instance)?)?,
        Cmd::Traffic { instance } => run::traffic(&Instance::new(&instance)?)?,
        Cmd::Load(args) => load::run(&args)?,
        Cmd::Run { scenario, shape, instance, plsprobe, trace } => {
            let asked = plsprobe.as_deref().map(|program| run::Asked { program, trace });
            run::run(&scenario, shape, &instance, asked.as_ref())?
        }
        Cmd::Demo { shape, instance, plsprobe } => run::demo(shape, &instance, &plsprobe)?,
        Cmd::List => list()?,
    };
    Ok(ExitCode::from(u8::from(!as_expected)))
}

fn down(instance: &Instance) -> Result<bool> {
    let found = instance.down()?;
    say!("lab `{}` {}", instance.name(), if found { "is down" } else { "was not up" });
    Ok(true)
}

fn list() -> Result<bool> {
    for scenario in SCENARIOS {
        let shapes: Vec<_> = scenario.shapes.iter().map(Shape::to_string).collect();
        say!("{:<17} {:<18} {}", scenario.name, shapes.join(" "), scenario.shows);
    }
    Ok(true)
}
