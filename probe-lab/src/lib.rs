//! The test world: namespaces in the shape of the seed article and a stand-in for Cilium. Never shipped.
//!
//! ```no_run
//! use probe_lab::{Lab, LabOptions, Ns, Probe};
//!
//! let lab = Lab::up(&LabOptions { instance: "docs".into(), ..LabOptions::default() })?;
//! let saw = lab.probe(&Probe::tcp(Ns::Pls, "10.224.0.8".parse()?, "10.0.0.143".parse()?, 80))?;
//! println!("{saw}");
//! # Ok::<(), anyhow::Error>(())
//! ```
pub mod addresses;
pub mod agent;
mod background;
#[cfg(test)]
mod dump;
mod instance;
mod kube_proxy;
mod lab;
pub mod load;
mod netns;
pub mod plsprobe_agent;
mod probe;
pub mod scenario;
mod server;
mod shell;
pub mod standin;
mod topology;
pub mod tracing;

pub use instance::{Instance, RUN_ROOT};
pub use lab::{Lab, LabOptions, Shape, unavailable};
pub use netns::{Netns, Ns};
pub use probe::{ClientSaw, Header, LINK_ID, Probe, Probed, Proto};
pub use server::App;
