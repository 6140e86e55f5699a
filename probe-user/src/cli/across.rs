//! Flags of `plsprobe trace` from elsewhere than the node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Global, Outcome};
use crate::across::{self, AGENT_NAME, Agents, Options};
use crate::trace::Ask;

/// Who is asked, and by which certificates.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "From elsewhere, by the agents of every node that matters")]
#[group(skip)]
pub(super) struct Args {
    /// Ask the agents by the Kubernetes API of this context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The same by the current context
    #[arg(long)]
    across: bool,
    /// Our certificate, which the agents ask for: a PEM file
    #[arg(long, value_name = "FILE")]
    agent_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    agent_key: Option<PathBuf>,
    /// The authority of the agents' certificates
    #[arg(long, value_name = "FILE")]
    agent_ca: Option<PathBuf>,
    /// The name in the agents' certificates
    #[arg(long, value_name = "NAME", default_value = AGENT_NAME)]
    agent_name: String,
    /// The agents' port [default: their container port `grpc`, else 9966]
    #[arg(long, value_name = "PORT")]
    agent_port: Option<u16>,
}

/// What else was asked for.
pub(super) struct Rest {
    pub(super) ask: Ask,
    pub(super) duration: Duration,
    pub(super) count: Option<u64>,
    pub(super) since: Option<Duration>,
    /// A flag that agents cannot do.
    pub(super) own: Option<&'static str>,
}

impl Args {
    /// Whether it is to be by agents of other nodes.
    pub(super) fn is_given(&self) -> bool {
        self.across || self.context.is_some()
    }

    pub(super) fn run(self, rest: Rest, global: &Global) -> Result<Outcome> {
        let Rest { ask, duration, count, since, own } = rest;
        if let Some(flag) = own {
            bail!(
                "found `{flag}` beside `--context` or `--across`: agents have their own sources and programs"
            );
        }
        let needed = |file: Option<PathBuf>, flag: &str| {
            file.with_context(|| {
                format!("agents want certificates of both sides; give `{flag} FILE` (docs/across.md)")
            })
        };
        across::run(&Options {
            dst: ask.dst,
            src: ask.src,
            ports: ask.ports,
            duration,
            count,
            since,
            kubeconfig: global.beyond.kubeconfig()?,
            context: self.context,
            agents: Agents {
                certificate: needed(self.agent_cert, "--agent-cert")?,
                key: needed(self.agent_key, "--agent-key")?,
                ca: needed(self.agent_ca, "--agent-ca")?,
                name: self.agent_name,
                port: self.agent_port,
            },
            output: global.output,
        })
    }
}
