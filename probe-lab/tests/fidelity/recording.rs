//! What was recorded of a scenario: its probes and its notifications.
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use probe_lab::{Ns, Proto};
use serde::Deserialize;

use crate::notification::Notification;

/// `expected.json`.
#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) endpoint_id: u16,
    pub(crate) policy_enabled: String,
    pub(crate) monitor_aggregation: String,
    pub(crate) probes: Vec<RecordedProbe>,
}

/// One probe of `expected.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RecordedProbe {
    pub(crate) id: String,
    pub(crate) from_ip: Option<Ipv4Addr>,
    pub(crate) from_port: Option<u16>,
    pub(crate) to: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) proto: String,
    pub(crate) client_saw: String,
}

#[derive(Deserialize)]
struct Line {
    hex: Option<String>,
}

impl Expected {
    pub(crate) fn read(scenario: &Path) -> Result<Self> {
        let path = scenario.join("expected.json");
        let text =
            fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("failed to read `{}`", path.display()))
    }
}

impl RecordedProbe {
    /// The namespace that has the probe's source address.
    pub(crate) fn ns(&self) -> Option<Ns> {
        match self.from_ip.map(|ip| ip.octets()) {
            None => Some(Ns::Node),
            Some([10, 224, 0, 8 | 9]) => Some(Ns::Pls),
            Some([10, 221, 1, 4]) => Some(Ns::Vm),
            Some([168, 63, 129, 16]) => Some(Ns::Fabric),
            Some([10, 0, 0, 143]) => Some(Ns::App),
            Some([10, 0, 1, 124]) => Some(Ns::Nginx),
            Some(_) => None,
        }
    }

    pub(crate) fn proto(&self) -> Proto {
        match self.proto.as_str() {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            "icmp" => Proto::Icmp,
            proto => panic!("recorded probe `{}` has protocol `{proto}`", self.id),
        }
    }

    /// Whether a notification is about this probe.
    pub(crate) fn owns(&self, notification: &Notification) -> bool {
        use crate::notification::Flow;
        match self.from_port {
            Some(port) => notification.has_port(port),
            None => notification.flow() == Flow::Icmp,
        }
    }
}

/// The recorded notifications, in order.
pub(crate) fn notifications(scenario: &Path) -> Result<Vec<Notification>> {
    let path = scenario.join("events/events.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let mut notifications = Vec::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line)?;
        let Some(hex) = line.hex else { continue };
        notifications.extend(Notification::parse(&bytes(&hex)?));
    }
    Ok(notifications)
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).context("a sample is not hex"))
        .collect()
}
