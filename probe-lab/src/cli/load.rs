//! `load`: a steady load, and what became of it.
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_lab::Instance;
use probe_lab::load::{Load, LoadOptions};

use super::background::check_up;
use super::interrupt::Interrupt;

/// How much, how long, and how to print it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which lab.
    #[arg(long, default_value = "lab")]
    instance: String,
    /// How long; Ctrl-C ends it earlier.
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Datagrams per second [default: as many as the machine can].
    #[arg(long, value_name = "N")]
    pps: Option<u32>,
    /// TCP connections that live as long as the load.
    #[arg(long, value_name = "N", default_value_t = LoadOptions::default().connections)]
    connections: u16,
    /// Requests per second over these.
    #[arg(long, value_name = "N", default_value_t = LoadOptions::default().requests)]
    requests: u32,
    /// New connections per second.
    #[arg(long, value_name = "N", default_value_t = LoadOptions::default().new_connections)]
    new_connections: u32,
    /// Text for people, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Holds the load, prints the report, and says whether all of it came through.
pub(super) fn run(args: &Args) -> Result<bool> {
    let instance = Instance::new(&args.instance)?;
    check_up(&instance)?;
    let interrupt = Interrupt::listen()?;
    let Args { pps, connections, requests, new_connections, .. } = *args;
    let options = LoadOptions { pps, connections, requests, new_connections, ..LoadOptions::default() };
    let load = Load::start(&instance, &options)?;
    interrupt.wait_for(Duration::from_secs(args.seconds));
    let report = load.stop()?;
    match args.output {
        Output::Text => say!("{report}"),
        Output::Json => {
            let json = serde_json::to_string(&report).context("failed to encode the report")?;
            say!("{json}");
        }
    }
    Ok(report.check_harmless().is_ok())
}
