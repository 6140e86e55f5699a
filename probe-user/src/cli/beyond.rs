//! Flags of what is known beyond the node.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Result;
use ipnet::IpNet;
use probe_model::world::private_link::Declared;

use crate::sources::{azure, cluster, http::Url, kubernetes::Ask};

/// So many notes about files of policies are printed.
const NOTES: usize = 10;

/// The cluster and Azure: who is asked, and what is given instead.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cluster and Azure")]
pub struct Args {
    /// Policy objects of a YAML or JSON file, or of a folder with all in it; may be repeated
    #[arg(long, global = true, value_name = "DIR|FILE")]
    policies: Vec<PathBuf>,
    /// Ask the Kubernetes API as this file's current context [default: the pod's service account, where there is one]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "no_kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Ask no Kubernetes API
    #[arg(long, global = true)]
    no_kubernetes: bool,
    /// Ask Azure about Private Link: the instance metadata service and, as a workload or managed identity, ARM
    #[arg(long, global = true)]
    azure: bool,
    /// A NAT IP of the Private Link service, or a prefix of such; may be repeated
    #[arg(long, global = true, value_name = "IP|CIDR", value_parser = parse_net)]
    pls_nat_ip: Vec<IpNet>,
    /// A subnet that the Private Link service takes its NAT IPs from; may be repeated
    #[arg(long, global = true, value_name = "CIDR")]
    pls_subnet: Vec<IpNet>,
    /// The cloud provider's configuration
    #[arg(long, global = true, value_name = "FILE", default_value = azure::place::AZURE_JSON, hide = true)]
    azure_config: PathBuf,
    /// The instance metadata service, elsewhere than it always is
    #[arg(long, global = true, value_name = "URL", hide = true)]
    imds_url: Option<Url>,
    /// ARM, elsewhere than the cloud's
    #[arg(long, global = true, value_name = "URL", hide = true)]
    arm_url: Option<Url>,
}

impl Args {
    /// The first of these flags that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [
            (!self.policies.is_empty(), "--policies"),
            (self.kubeconfig.is_some(), "--kubeconfig"),
            (self.no_kubernetes, "--no-kubernetes"),
            (self.azure, "--azure"),
            (!self.pls_nat_ip.is_empty(), "--pls-nat-ip"),
            (!self.pls_subnet.is_empty(), "--pls-subnet"),
        ];
        flags.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
    }

    /// The kubeconfig that was given.
    ///
    /// # Errors
    ///
    /// If no API is to be asked.
    pub(super) fn kubeconfig(&self) -> Result<Option<PathBuf>> {
        anyhow::ensure!(
            !self.no_kubernetes,
            "found `--no-kubernetes`, and agents are reached by the Kubernetes API"
        );
        Ok(self.kubeconfig.clone())
    }

    /// What is asked and what was given, with files read; what was left out of them is said on stderr.
    ///
    /// # Errors
    ///
    /// If a file of policies cannot be read or has a mistake.
    pub(super) fn options(&self) -> Result<cluster::Options> {
        let found = cluster::policies(&self.policies)?;
        for note in found.notes.iter().take(NOTES) {
            eprintln!("plsprobe: {note}");
        }
        if found.notes.len() > NOTES {
            eprintln!("plsprobe: and {} more notes about files of policies", found.notes.len() - NOTES);
        }
        let kubernetes = match &self.kubeconfig {
            Some(path) => Ask::Kubeconfig(path.clone()),
            None if self.no_kubernetes => Ask::Nobody,
            None => Ask::in_pod(),
        };
        Ok(cluster::Options {
            kubernetes,
            azure: azure::Options {
                ask: self.azure,
                configuration: Some(self.azure_config.clone()),
                imds: self.imds_url.clone(),
                arm: self.arm_url.clone(),
            },
            policies: found.policies,
            declared: Declared { nat_ips: self.pls_nat_ip.clone(), subnets: self.pls_subnet.clone() },
        })
    }
}

/// An address, or a prefix.
fn parse_net(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let net = address.or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()));
    net.map_err(|_| {
        format!("found `{text}`, expected an address or a prefix, as in `10.224.0.8` or `10.224.0.0/28`")
    })
}
